"""The packs that an export is made of."""

import os
from collections.abc import Collection, Iterable, Iterator

from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.fit import check_fits

PackSource = TaskPack | str | os.PathLike
NO_TASKS = "An export needs at least one task."


def fitting_packs(packs: Iterable[PackSource], spec: BaseSpec, taken: Collection[str] = ()) -> Iterator[TaskPack]:
    """Yields packs that fit a base and have each its own task's name, one in memory at a time.

    Args:
        packs: Packs, their files or URLs.
        spec: The base.
        taken: Names that tasks of the export have already.

    Raises:
        PackError: If a pack cannot be read or does not fit, or two tasks have one name.
    """
    names = set(taken)
    for source in packs:
        pack = source if isinstance(source, TaskPack) else TaskPack.load(source, spec)
        # A pack that is given may have been changed since it was made.
        pack.check()
        check_fits(pack.claims, spec)
        if pack.task in names:
            raise PackError(f"There are two tasks named {pack.task!r}; each task of an export has its own name.")
        names.add(pack.task)
        yield pack
