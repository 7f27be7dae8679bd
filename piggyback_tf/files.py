"""Files that are written whole or not at all, folders that one process uses at a time, and paths that people give."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

LOCK_FILE = ".lock"
# What temporary folders are called, which is nothing that anybody else calls a file.
_TEMPORARY = ".piggyback_tf-{}.tmp"
_IS_TEMPORARY = re.compile(r"\.piggyback_tf-[0-9a-f]{16}\.tmp")
# Two letters at least, as C:// is a drive of Windows.
_PROTOCOL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


class PathError(OSError):
    """A path that cannot be used for what it was given for; the message is a sentence that says why."""


def protocol_of(path: str) -> str | None:
    """Returns what stands before `://` at the start of a URL, None for a path."""
    found = _PROTOCOL.match(path)
    return found[1] if found else None


def is_empty(what: str) -> str:
    """Returns what to say of a path that is empty, as an unset variable of a shell is."""
    return f"{what} is empty, perhaps of a variable that is not set."


def local_path(path: str | os.PathLike, option: str) -> Path:
    """Returns the path of a file or folder of this machine that somebody gave, with `~` for the user's folder.

    Args:
        path: What was given.
        option: What stood before it where it was given, such as `--output=`, for errors.

    Raises:
        PathError: If it is empty, as an unset variable of a shell is, or a URL.
    """
    text = os.fspath(path)
    if not text:
        raise PathError(f"{is_empty(option)} Name a path; this folder is '.'.")
    if isinstance(path, str) and protocol_of(path):
        raise PathError(f"{option}{path}: this is a URL, and only files and folders of this machine can be used here.")
    return Path(with_home(path))


def with_home(path: str | os.PathLike) -> str:
    """Returns a path with the folder of a user for a `~` at its start, which shells leave in `--name=~/x`.

    What is no path of this machine, such as a URL or the name of weights, stays as it is.
    """
    return os.path.expanduser(os.fspath(path))  # noqa: PTH111 (that of `Path` fails where there is no such user)


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; Python reads other bytes as halves of surrogate pairs."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def same_look(name: str) -> str:
    """Returns the one spelling of all names that look like this one: a Mac spells letters with accents otherwise."""
    return unicodedata.normalize("NFC", name)


def shown_path(path: str | os.PathLike) -> str:
    """Returns a path as a text that can be printed and written: bytes of names that are no UTF-8 as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def make_folder(folder: str | os.PathLike) -> Path:
    """Makes a folder and those above it, as far as they are not there.

    Raises:
        PathError: If that cannot be done; the message says why.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        reason = f"{os.fspath(place)!r} is no folder" if not place.is_dir() else error.strerror
        raise PathError(f"The folder {os.fspath(folder)!r} cannot be made: {reason}.") from error
    return folder


def behind_link(path: str | os.PathLike) -> Path:
    """Returns what a link leads to, and any other path as it was given, which is how errors name it.

    `.` and `..`, in whose folder nothing can take their place, become whole paths.
    """
    path = Path(path)
    return Path(os.path.realpath(path)) if path.is_symlink() or path.name in ("", "..") else path


def check_target(path: str | os.PathLike) -> None:
    """Raises a `PathError` if a file cannot take the place of what is there: a folder, a device, a pipe, a socket."""
    if not os.fspath(path):
        raise PathError(f"{is_empty('The name of the file to write')} Name a file.")
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 (may be of any kind)
        kind = "a folder" if Path(path).is_dir() else "a device, a pipe or a socket"
        raise PathError(f"{os.fspath(path)!r} cannot be written: it is {kind}, and no file. Name another file.")


def check_writable(folder: str | os.PathLike) -> None:
    """Raises a `PathError` if rights forbid to write into a folder, or to make it; full disks are found by writing."""
    there = Path(folder).absolute()
    while not os.path.exists(there):  # noqa: PTH110 (a folder without rights counts as none)
        there = there.parent
    if not there.is_dir():
        raise PathError(f"{os.fspath(folder)!r} cannot be written: {str(there)!r} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PathError(f"{os.fspath(folder)!r} cannot be written: there is no right to write into {str(there)!r}.")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path of the same name, which becomes `path` when the block ends well.

    The temporary file is flushed to the disk (fsync) and renamed over `path`; the rename itself is flushed too. A
    reader sees the old file or the new one, never a part, wherever the writer is killed. What killed writers left in
    the folder goes with the next one. A file that is replaced keeps its permissions, and a link its place.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The path of an empty file to write the content to.

    Raises:
        PathError: If what is there is no file.
        OSError: If the folder cannot be written to or the disk is full; `path` is then untouched.
    """
    check_target(path)
    target = behind_link(path)
    try:
        with temporary_folder(target.parent) as folder:
            # Under its own name, since libraries such as Keras choose the format by the ending.
            temporary = folder / target.name
            temporary.touch()
            yield temporary
            with temporary.open("rb") as stream:
                with contextlib.suppress(FileNotFoundError):
                    os.fchmod(stream.fileno(), target.stat().st_mode & 0o777)
                os.fsync(stream.fileno())
            temporary.replace(target)
        flush(target.parent)
    except OSError as error:
        name_target(error, path)
        raise


def name_target(error: OSError, path: str | os.PathLike) -> None:
    """Makes an error name what could not be written; that of a full disk names nothing, or a temporary file."""
    if error.errno is not None and (error.filename is None or _IS_TEMPORARY.search(os.fsdecode(error.filename))):
        error.filename, error.filename2 = os.fspath(path), None


def without_temporary(text: str) -> str:
    """Returns what a library says of a temporary file without the path in front; of another file all of it."""
    found = re.search(rf"{_IS_TEMPORARY.pattern}[^;:]*[;:] *", text)
    return text[found.end() :] if found else text


@contextlib.contextmanager
def temporary_folder(parent: str | os.PathLike) -> Iterator[Path]:
    """Yields a new folder to prepare something in that is then renamed to a place in `parent`.

    It goes when the block ends. While the process lives it holds the lock of a file in the folder, by which others know
    what killed ones left; that is removed first.

    Args:
        parent: An existing folder.

    Raises:
        OSError: If the folder cannot be written to.
    """
    parent = Path(parent)
    remove_leftovers(parent)
    folder, lock = _make_locked(parent)
    with lock:
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields a new folder for files that nobody keeps, where the system has such (`$TMPDIR`).

    It goes when the block ends, and what killed processes left there of this kind with the next one.

    Raises:
        OSError: If the folder cannot be written to; it names where the system has such files.
    """
    parent = tempfile.gettempdir()
    try:
        with temporary_folder(parent) as folder:
            yield folder
    except OSError as error:
        name_target(error, parent)
        raise


def _make_locked(parent: Path) -> tuple[Path, TextIO]:
    """Makes a temporary folder; returns it and the file in it that is locked."""
    while True:
        folder = parent / _TEMPORARY.format(secrets.token_hex(8))
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            # A name that is made up says nothing to anybody.
            error.filename = os.fspath(parent)
            raise
        path = folder / LOCK_FILE
        try:
            stream = path.open("w")
        except FileNotFoundError:
            # Another process took it for what a killed one left.
            continue
        except OSError:
            folder.rmdir()
            raise
        if _try_lock(stream) is not False and path.exists():
            return folder, stream
        stream.close()


def _try_lock(stream: TextIO) -> bool | None:
    """Locks an open file; returns False if another process holds the lock, None if the file system has no locks."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes the temporary folders that killed writers left in a folder; those of writers that live stay."""
    try:
        with os.scandir(os.fspath(folder)) as entries:
            found = [Path(entry) for entry in entries if _IS_TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return
    for path in found:
        _remove_if_left(path)


def _remove_if_left(folder: Path) -> None:
    try:
        with (folder / LOCK_FILE).open("r+") as stream:
            if _try_lock(stream):
                shutil.rmtree(folder, ignore_errors=True)
    except FileNotFoundError:
        # Its maker was killed while it removed the folder, or before it made the lock; or it lives and is about to make
        # it, in a folder that is empty till then.
        with contextlib.suppress(OSError):
            folder.rmdir()
        with contextlib.suppress(OSError):
            if folder / LOCK_FILE not in folder.iterdir():
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        # Of another user, or no folder at all.
        return


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


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes arrays to a safetensors file, whole or not at all; see `atomic_file`."""
    with atomic_file(path) as temporary:
        try:
            save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, temporary, dict(metadata))
        except SafetensorError as error:
            # A full disk is no fault of the program; the library says so in a text alone.
            found = re.search(r"\(os error (\d+)\)", str(error))
            number = int(found[1]) if found else errno.EIO
            raise OSError(number, os.strerror(number) if found else str(error), os.fspath(path)) from error


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike) -> Iterator[None]:
    """Keeps a folder for this process while the block runs; the lock goes with the process, however it ends.

    Raises:
        RuntimeError: If another process holds the lock; the message names the lock file and the process.
        PathError: If the lock file holds something, which is not of this package.
    """
    path = Path(folder) / LOCK_FILE
    with path.open("a+", errors="replace") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise RuntimeError(
                f"Another process (id {stream.read().strip() or 'unknown'}) works in {os.fspath(folder)!r} and holds "
                f"the lock {os.fspath(path)!r}. Wait for it, or use another folder."
            ) from None
        stream.seek(0)
        if not re.fullmatch(r"\d*\s*", stream.read()):
            raise PathError(f"{os.fspath(path)!r} is no lock of this package. Use another folder.")
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield
