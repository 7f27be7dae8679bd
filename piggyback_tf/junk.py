"""Files and folders that nobody put there on purpose: what systems and file servers leave beside people's files.

`export/deployment/client.py`, which runs without this package, has a copy of `JUNK` and `is_junk`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

# In small letters. Windows, macOS' archives, Synology's and QNAP's file servers, the root of a Linux disk.
JUNK = (
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "__macosx",
    "@eadir",
    "#recycle",
    "#snapshot",
    "@recycle",
    "lost+found",
)


def is_junk(name: str) -> bool:
    """Whether a file or folder of this name holds no data: it is hidden, such as `._NAME` of macOS, or in `JUNK`."""
    return name.startswith(".") or name.lower() in JUNK


def find_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Yields the files in a folder and in those below it that are no junk and in none, sorted within each folder.

    Args:
        folder: Where to look; its own name may be any. Links to folders are not followed.
    """
    for path, folders, files in os.walk(os.fspath(folder)):
        folders[:] = sorted(name for name in folders if not is_junk(name))
        yield from (Path(path, name) for name in sorted(files) if not is_junk(name))
