"""From a task pack to the start of another task's masks."""

from collections.abc import Mapping
from typing import Any

from piggyback_tf.masking.start import MaskStart
from piggyback_tf.packs.fileformat import PackError, shown
from piggyback_tf.packs.pack import TaskPack


def mask_start(pack: TaskPack, origin: Mapping[str, Any]) -> MaskStart:
    """Returns the start that a pack gives to the masks of another task on the same base.

    Args:
        pack: A pack that was checked to fit the base.
        origin: What is recorded of where the start comes from.

    Raises:
        PackError: If the pack has no masks.
    """
    if not pack.masks:
        task, method = shown(pack.task), shown(pack.method)
        raise PackError(f"Task {task} was learned by {method} and has no masks that others could start from.")
    masks = {path: pack.mask(path) for path in pack.masks}
    return MaskStart(task=pack.task, kind=pack.mask_kind, masks=masks, norm=pack.norm, origin=origin)
