"""The packs that an export is made of, and their base."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator

from piggyback_tf.commands.common import choose_base, deciding_task
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.base_fit import check_fits

from .errors import ExportError

PackSource = TaskPack | str | os.PathLike


def find_base(files: Iterable[str], backbone: str | None, weights: str | None) -> tuple[TaskPack, tuple[str, str]]:
    """Finds the base of packs, as far as that goes without TensorFlow.

    Args:
        files: The packs' files or URLs.
        backbone: Name of the base; that in the pack if None.
        weights: Its weights; those that the pack names if None.

    Returns:
        What `piggyback_tf.commands.common.load_base` takes.

    Raises:
        UsageError: If the base or its weights cannot be found.
        PackError: If a file that is read is no good pack.
    """
    pack = deciding_task(map(TaskPack.load, files))
    return pack, choose_base(pack, backbone, weights)


def head_of(pack: TaskPack) -> HeadSpec:
    """Returns the head of a task, which every pack has once it is made."""
    assert pack.head_spec is not None
    return pack.head_spec


def fitting_packs(
    packs: Iterable[PackSource],
    spec: BaseSpec,
    taken: Collection[str] = (),
    *,
    check: Callable[[TaskPack], None],
) -> Iterator[TaskPack]:
    """Yields packs that fit a base and have each its own task's name, one in memory at a time.

    Args:
        packs: Packs, their files or URLs.
        spec: The base.
        taken: Names that tasks of the export have already.
        check: Raises an `ExportError` if the kind of export cannot hold a pack.

    Raises:
        PackError: If a pack cannot be read or does not fit, or two tasks have one name.
        ExportError: If there is no pack, and no task in the export already, or one is not what the export holds.
    """
    names = set(taken)
    for source in packs:
        pack = source if isinstance(source, TaskPack) else TaskPack.load(source, spec)
        # A pack that is given may have been changed since it was made.
        pack.check()
        check_fits(pack.claims, spec)
        check(pack)
        if pack.task in names:
            raise PackError(f"There are two tasks named {pack.task!r}; each task of an export has its own name.")
        names.add(pack.task)
        yield pack
    if not names:
        raise ExportError("An export needs at least one task.")
