"""Files that a command owns: written all or none, and never over what somebody else wrote or changed."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from piggyback_tf.files import atomic_file

from ..shared.errors import ExportError
from ..shared.folders import made_folder

# What was written last, to tell whether somebody changed it since.
RECORD = ".written.json"


def write_files(groups: Mapping[Path, Mapping[Path, bytes]], *, overwrite: bool = False) -> list[Path]:
    """Writes files, and remembers them so that the next call may replace them.

    A file that is there is replaced if an earlier call wrote it, or one of the same content: a version that tasks were
    added to has copies of what was written into the old one. Every file is complete on the disk before the first takes
    its place.

    Args:
        groups: By the folder in which it is remembered what was written, content by path. What any of these folders
            remembers counts for all files. They are made if need be.
        overwrite: Whether other files may be replaced, too.

    Returns:
        The files that were not there with that content before.

    Raises:
        ExportError: If there is another file in a place, and `overwrite` is false; then nothing is written.
        OSError: If the files cannot be written.
    """
    records = {folder: _read_record(folder / RECORD) for folder in groups}
    known = {digest for record in records.values() for digest in record.values()}
    files = {path: data for group in groups.values() for path, data in group.items()}
    changed = {path: data for path, data in files.items() if not _holds(path, data)}
    for path in changed:
        if path.exists() and not overwrite and _digest(path.read_bytes()) not in known:
            raise ExportError(
                f"{str(path)!r} was not written by this command, or was changed since; move it away, or replace it "
                "with --overwrite."
            )
    written = {}
    for folder, group in groups.items():
        record = records[folder] | {_key(path, folder): _digest(data) for path, data in group.items()}
        if record != records[folder]:
            written[folder / RECORD] = f"{json.dumps(record, indent=1, sort_keys=True)}\n".encode()
    with contextlib.ExitStack() as stack:
        for path, data in {**written, **changed}.items():
            stack.enter_context(made_folder(path.parent))
            stack.enter_context(atomic_file(path)).write_bytes(data)
    return list(changed)


def _read_record(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ExportError(f"{str(path)!r} is damaged: {error}; remove it.") from error
    if not isinstance(content, dict):
        raise ExportError(f"{str(path)!r} is damaged: it holds no object; remove it.")
    return content


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data


def _key(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
