"""`folder:PATH`: image files in one folder per class."""

import os
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from absl import logging

from piggyback_tf.data.images import DataError, has_image_extension, read_file, read_image
from piggyback_tf.data.sources import Source, TaskData, digest
from piggyback_tf.data.specs import DataRequest, register_data, task_of_splits
from piggyback_tf.data.split_folders import SPLITS, file_states, file_status, split_folders
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile, check_header, no_image_by_name
from piggyback_tf.files import PathError, is_text, local_path, same_look, shown_path
from piggyback_tf.foreign_text import some
from piggyback_tf.junk import is_junk

LAYOUT = "The layout must be PATH/train/CLASS/IMAGE, and optionally PATH/val/CLASS/IMAGE and PATH/test/CLASS/IMAGE."


class FolderSource(Source):
    """The images of one split of a folder.

    Args:
        root: The data set's folder.
        paths: The files, relative to `root`, with forward slashes.
        labels: The class of each file, or whether it is of each class, 0 or 1.
    """

    has_files = True

    def __init__(self, root: Path, paths: list[str], labels: Sequence[int | Sequence[str]]):
        self._root = root
        self._paths = paths
        self._labels = np.array(labels, dtype=np.int32)

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def read(self, index: int) -> np.ndarray:
        return read_image(self._root / self._paths[index])

    def read_file(self, index: int) -> bytes:
        return read_file(self._root / self._paths[index])

    def describe(self, index: int) -> str:
        return shown_path(self._root / self._paths[index])

    def key(self, index: int) -> str:
        return self._paths[index]

    def check_header(self, index: int) -> None:
        check_header(self._root / self._paths[index])

    def stored_bytes(self, index: int) -> int:
        return file_status(self._root / self._paths[index]).st_size

    @cached_property
    def _fingerprint(self) -> str:
        states = file_states((path, self._root / path) for path in self._paths)
        return digest("folder", str(self._root.resolve()), self._labels.tobytes(), *states)

    def fingerprint(self) -> str:
        return self._fingerprint


@register_data("folder", targets=("class",))
def load_folder(request: DataRequest) -> TaskData:
    """Answers `folder:PATH`; names of classes are the sorted names of the folders in `PATH/train`."""
    if not request.argument:
        raise DataError(f"The data spec must name a folder, as in 'folder:/data/cats', but was {request.spec!r}.")
    try:
        root = local_path(request.argument, "folder:")
    except PathError as error:
        raise DataError(str(error)) from error
    _check_text(str(root), f"Folder {shown_path(root)!r}")
    splits = {entry.name for entry in _entries(root) if entry.is_dir()}
    if "train" not in splits:
        raise DataError(f"Folder {str(root)!r} has no folder 'train'. {LAYOUT}{_cure(root, splits)}")
    folders = split_folders(root, splits)
    problems: dict[str, list[UnusableFile]] = {split: [] for split in SPLITS}
    files = {split: _list_split(root, folder, problems[split]) for split, folder in folders.items()}
    class_names = tuple(sorted(files["train"]))
    if len(class_names) == 1:
        raise DataError(f"Folder {str(root / 'train')!r} has only one class, {class_names[0]!r}; a task needs two.")
    if empty := [name for name in class_names if not files["train"][name]]:
        if not request.skip_broken_images:
            raise DataProblems([problem for found in problems.values() for problem in found], request.spec)
        raise DataError(
            f"No file of class {empty[0]!r} in {str(root / 'train')!r} can be used; none is left to train on."
        )

    def source(split: str) -> FolderSource:
        split, found = folders[split], _named_as(class_names, files[split])
        if unknown := [name for name in found if name not in class_names]:
            which = f"Class {unknown[0]!r} is" if len(unknown) == 1 else f"Classes {some(unknown, 10, repr)} are"
            it = "it" if len(unknown) == 1 else "they"
            raise DataError(
                f"{which} in {str(root / split)!r} but not in {str(root / 'train')!r}, so that {it} cannot be learned."
            )
        if missing := [name for name in class_names if not found.get(name)]:
            logging.warning("%s has no images of %d class(es): %s.", root / split, len(missing), some(missing))
        pairs = [(path, label) for label, name in enumerate(class_names) for path in found.get(name, [])]
        return FolderSource(root, [path for path, _ in pairs], [label for _, label in pairs])

    return task_of_splits(request, root, class_names, {split: source(split) for split in folders}, problems)


def _cure(root: Path, folders: Collection[str]) -> str:
    """Returns what to do with a folder that has the folders of classes, as many keep their photos; else nothing."""
    if folders and all(any(has_image_extension(entry.name) for entry in _entries(root / name)) for name in folders):
        if root.name == "train":
            return f" This looks like the folder 'train' itself: name the one that it is in, {str(root.parent)!r}."
        return f" Its folders look like classes: make a folder {str(root / 'train')!r}, and move them there."
    return ""


def _named_as(class_names: Sequence[str], files: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Returns the files of classes by the names in `class_names` that look the same, others by their own."""
    known, found = {same_look(name): name for name in class_names}, {}
    for name, paths in files.items():
        found.setdefault(known.get(same_look(name), name), []).extend(paths)
    return found


def _list_split(root: Path, split: str, problems: list[UnusableFile]) -> dict[str, list[str]]:
    """Returns the image files of every class folder of a split, relative to `root` and sorted.

    Args:
        root: The data set's folder.
        split: The split's folder in it.
        problems: Gets what is no image by its name or place.
    """
    files, empty = {}, []
    for entry in sorted(_entries(root / split), key=lambda entry: entry.name):
        if not entry.is_dir():
            if has_image_extension(entry.name):
                place = shown_path(entry.path)
                problems.append(UnusableFile(place, "no_class", f"Image {place!r} is in no class folder. {LAYOUT}"))
            continue
        _check_text(entry.name, f"Class folder {shown_path(entry.path)!r}")
        before = len(problems)
        files[entry.name] = sorted(_list_class(Path(entry.path), f"{split}/{entry.name}", (), problems))
        if not files[entry.name] and len(problems) == before:
            empty.append(entry.path)
    if empty:
        which = f"Class folder {empty[0]!r} has" if len(empty) == 1 else f"Class folders {some(empty, 10, repr)} have"
        raise DataError(f"{which} no images. Remove the folder or put images into it.")
    if not files:
        raise DataError(f"Folder {str(root / split)!r} has no class folders with images. {LAYOUT}")
    return files


def _list_class(
    folder: Path, relative: str, above: tuple[tuple[int, int], ...], problems: list[UnusableFile]
) -> list[str]:
    # Links to folders are followed, as data sets are often put together from them; a link to a folder
    # further up would never end.
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        raise DataError(f"Folder {str(folder)!r} is a link to a folder that it lies in.")
    files = []
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        path = f"{relative}/{entry.name}"
        if entry.is_dir():
            files += _list_class(Path(entry.path), path, (*above, identity), problems)
        elif has_image_extension(entry.name):
            files.append(path)
        else:
            problems.append(no_image_by_name(shown_path(entry.path)))
    return files


def _check_text(name: str, what: str) -> None:
    """Raises a `DataError` if a name is no text: those of classes and of the data set are kept in packs."""
    if not is_text(name):
        raise DataError(
            f"{what} has a name that is not in UTF-8. Rename it, if the name is in Latin-1 with "
            "'convmv -f latin1 -t utf8 --notest -r FOLDER'."
        )


def _entries(folder: Path) -> list[os.DirEntry]:
    """Returns what is in a folder, less the files that nobody put there on purpose."""
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if not is_junk(e.name)]
    except FileNotFoundError:
        raise DataError(f"There is no folder {str(folder)!r}.") from None
    except NotADirectoryError:
        raise DataError(f"{str(folder)!r} is a file, not a folder. {LAYOUT}") from None
    except OSError as error:
        raise DataError(f"Folder {str(folder)!r} cannot be read: {error.strerror}.") from error
