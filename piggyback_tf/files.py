"""Files that are written whole or not at all, and folders that one process uses at a time."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which becomes `path` when the block ends well.

    The temporary file is flushed to the disk (fsync) and renamed over `path`; the rename itself is flushed too. A
    reader sees the old file or the new one, never a part, wherever the writer is killed.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The path of an empty file to write the content to.

    Raises:
        OSError: If the folder cannot be written to or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    # The ending is kept, since libraries such as Keras choose the format by it.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f".tmp{path.suffix}", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            # mkstemp makes the file private; a result is as readable as any other file of its owner.
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: str | os.PathLike) -> None:
    """Writes what the system still holds of a file, or of a folder's list of files, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` (a string as UTF-8) to `path`, whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes, from a folder and those in it, the temporary files of writers that were killed.

    Call it only where no other process writes; see `folder_lock`.
    """
    for path in Path(folder).rglob(".*.*.tmp*"):
        path.unlink()


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps a folder for this process while the block runs; the lock goes with the process, however it ends.

    Raises:
        RuntimeError: If another process holds the lock; the message names the lock file and the process.
    """
    path = Path(folder) / LOCK_FILE
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise RuntimeError(
                f"Another process (id {stream.read().strip() or 'unknown'}) works in {os.fspath(folder)!r} and holds "
                f"the lock {os.fspath(path)!r}. Wait for it, or use another folder."
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _umask() -> int:
    # The umask can only be read by setting it; the two calls are as close together as they can be.
    mask = os.umask(0)
    os.umask(mask)
    return mask
