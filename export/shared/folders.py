"""Folders that appear whole or not at all, and how large they are."""

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

from piggyback_tf.files import flush, make_folder, name_target, temporary_folder


@contextlib.contextmanager
def new_folders(targets: Sequence[Path], check_free: Callable[[], None]) -> Iterator[list[Path]]:
    """Yields a path for each of some folders, where it is made, and from where it takes its place in the end.

    What is there when the block ends is flushed to the disk and renamed, all or none.

    Args:
        targets: Where the folders belong, in the order in which they appear; those above them are made if need be, and
            removed if the block fails.
        check_free: Raises if a place is taken; called before the block, and again before the first is renamed.

    Raises:
        OSError: If a folder cannot be written.
    """
    check_free()
    parent = Path(os.path.commonpath([target.parent for target in targets]))
    with contextlib.ExitStack() as stack:
        stack.enter_context(_naming(targets[0] if len(targets) == 1 else parent))
        for target in targets:
            stack.enter_context(made_folder(target.parent))
        temporary = stack.enter_context(temporary_folder(parent))
        folders = [temporary / str(number) / target.name for number, target in enumerate(targets)]
        for folder in folders:
            folder.parent.mkdir()
        yield folders
        for path in temporary.rglob("*"):
            flush(path)
        check_free()
        for place, (folder, target) in enumerate(zip(folders, targets, strict=True)):
            try:
                folder.replace(target)
            except OSError:
                for done in targets[:place]:
                    shutil.rmtree(done)
                raise
        for folder in {target.parent for target in targets}:
            flush(folder)


@contextlib.contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Makes errors of temporary files name what was to be written."""
    try:
        yield
    except OSError as error:
        name_target(error, target)
        raise


@contextlib.contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder with those above it, and removes what it made if the block fails."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    try:
        yield
    except BaseException:
        for path in missing:
            # Another file of ours may be in it still; then it is left to the context that made it.
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def bytes_of(folders: Iterable[Path], without: Collection[str] = ()) -> int:
    """Returns how many bytes the files in some folders have.

    Args:
        folders: The folders, with all that is in them.
        without: Names of files that do not count.
    """
    files = (path for folder in folders for path in folder.rglob("*") if path.name not in without)
    return sum(path.stat().st_size for path in files if path.is_file())
