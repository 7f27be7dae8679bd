"""From a task pack to the start of another task's masks."""

from collections.abc import Mapping
from typing import Any

from piggyback_tf.masking.start import MaskStart
from piggyback_tf.packs.fileformat import PackError, shown
from piggyback_tf.packs.pack import TaskPack


def mask_start(pack: TaskPack, kind: str, norm: str, origin: Mapping[str, Any]) -> MaskStart:
    """Returns the start that a pack gives to the masks of another task on the same base.

    Args:
        pack: A pack that was checked to fit the base.
        kind: Kind of the new masks; ternary ones can start from either kind, binary ones from binary ones.
        norm: `"frozen"` or `"task"`: how the new task has its batch norm.
        origin: What is recorded of where the start comes from.

    Raises:
        PackError: If the pack has no masks, or the new task cannot have masks or batch norm like the pack's.
    """
    task = f"Task {shown(pack.task)}"
    if not pack.masks:
        raise PackError(f"{task} was learned by {shown(pack.method)} and has no masks that others could start from.")
    if pack.mask_kind == "ternary" and kind != "ternary":
        raise PackError(
            f"{task} has ternary masks, from which {kind} ones cannot start. Use mask_kind='ternary', or the pack of a "
            "task with binary masks."
        )
    if pack.norm and norm != "task":
        raise PackError(
            f"{task} has batch norm of its own, without which its masks are not what they were, and norm={norm!r} "
            "keeps that of the base. Use norm='task', or the pack of a task with the base's batch norm."
        )
    return MaskStart({path: pack.mask(path) for path in pack.masks}, pack.norm, origin)
