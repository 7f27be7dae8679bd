"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: str | os.PathLike, data: bytes | str) -> None:
    """Writes `data` to `path` so that a reader sees the old file or the new one, never a part.

    The bytes go to a temporary file in the same folder, are flushed to the disk (fsync), and the
    file is then renamed over `path`; the rename itself is flushed too.

    Args:
        path: The file to write; its folder must exist.
        data: The content; a string is encoded as UTF-8.

    Raises:
        OSError: If the folder cannot be written to or the disk is full; `path` is then untouched.
    """
    path = Path(path)
    if isinstance(data, str):
        data = data.encode("utf-8")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            # mkstemp makes the file private; a result is as readable as any other file of its owner.
            os.fchmod(stream.fileno(), 0o666 & ~_umask())
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _umask() -> int:
    # The umask can only be read by setting it; the two calls are as close together as they can be.
    mask = os.umask(0)
    os.umask(mask)
    return mask
