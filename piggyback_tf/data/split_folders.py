"""Data sets that are folders of files: which folder is which split, and what is known of a file before it is read."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from piggyback_tf.data.images import DataError, has_image_extension
from piggyback_tf.files import PathError, local_path
from piggyback_tf.junk import is_junk

# The names that the folders of each split can have.
SPLITS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def split_folders(root: Path, there: Collection[str]) -> dict[str, str]:
    """Returns the name of the folder of each split that a data set has.

    Args:
        root: The data set's folder.
        there: The names of the folders in it; others than those of splits are passed over.

    Raises:
        DataError: If two of them are the same split.
    """
    if {*SPLITS["validation"]} <= {*there}:
        raise DataError(f"Folder {str(root)!r} has both 'val' and 'validation'; remove one of them.")
    return {split: name for split, names in SPLITS.items() for name in names if name in there}


def existing_folder(path: str, before: str, layout: str = "") -> Path:
    """Returns the folder that a data spec names.

    Args:
        path: Its path, as given.
        before: What stands before it where it was given, such as `folder:`.
        layout: What is to be in it, a sentence for the error.

    Raises:
        DataError: If it is no folder of this machine, or not there.
    """
    try:
        root = local_path(path, before)
    except PathError as error:
        raise DataError(str(error)) from error
    if not root.is_dir():
        raise DataError(f"There is no folder {str(root)!r}. {layout}".rstrip())
    return root


def images_by_name(folder: Path, layout: str) -> dict[str, Path]:
    """Returns the image files of a folder by their names without extension, sorted.

    Args:
        folder: The folder.
        layout: What is to be in it, a sentence for errors.

    Raises:
        DataError: If it cannot be read, or two names differ by their extensions alone.
    """
    try:
        files = sorted(entry for entry in folder.iterdir() if not is_junk(entry.name) and not entry.is_dir())
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be read: {error.strerror}. {layout}") from None
    found: dict[str, Path] = {}
    for file in files:
        if not has_image_extension(file.name):
            raise DataError(f"File {str(file)!r} is not an image by its name.")
        if file.stem in found:
            raise DataError(f"{str(found[file.stem])!r} and {str(file)!r} have the same name but for the extension.")
        found[file.stem] = file
    return found


def listed_names(file: Path) -> list[str]:
    """Returns the names of images in a list of them, a line each; nothing if there is no list.

    Raises:
        DataError: If it cannot be read as text.
    """
    try:
        return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"File {str(file)!r} cannot be read as text: {error}.") from error


def file_status(path: Path, whose: str = "") -> os.stat_result:
    """Returns what the file system knows of a file.

    Args:
        path: The file.
        whose: For the error: what stands between the file and what is wrong with it.

    Raises:
        DataError: If it is not there, or nothing may be known of it.
    """
    try:
        return path.stat()
    except OSError as error:
        raise DataError(f"File {str(path)!r}{whose} cannot be read: {error.strerror}.") from error


def file_state(name: str, path: Path, whose: str = "") -> str:
    """Returns a text that changes when a file does; a part of a source's fingerprint.

    Args:
        name: What the file is called in the text.
        path: The file.
        whose: As of `file_status`.

    Raises:
        DataError: As `file_status`.
    """
    status = file_status(path, whose)
    return f"{name} {status.st_size} {status.st_mtime_ns}"


def file_states(files: Iterable[tuple[str, Path]]) -> Iterator[str]:
    """Yields `file_state` of each file, and another text of one that cannot be read."""
    for name, path in files:
        try:
            yield file_state(name, path)
        except DataError:  # Such as a link to nothing; whoever reads it says so.
            yield f"{name} cannot be read"
