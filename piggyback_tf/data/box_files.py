"""Images with boxes that are files of a folder, however their boxes are written down."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from absl import logging

from piggyback_tf.data.augment import Size
from piggyback_tf.data.boxes import COLUMNS, BoxTable, box_faults, some_faults
from piggyback_tf.data.images import DataError, read_image
from piggyback_tf.data.sources import Source, TaskData, digest
from piggyback_tf.data.specs import DataRequest, task_of_splits
from piggyback_tf.data.split_folders import file_states, file_status
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile, check_header
from piggyback_tf.files import shown_path
from piggyback_tf.foreign_text import some


@dataclasses.dataclass(frozen=True)
class NamedBox:
    """A box as an annotation has it.

    Attributes:
        what: What it is called in errors, such as `"object 3 (dog)"`.
        edges: ymin, xmin, ymax and xmax in pixels, counted from 0; the last row and column are excluded.
        class_name: The name of its class.
        ignored: Whether it is a crowd, or difficult.
    """

    what: str
    edges: tuple[float, float, float, float]
    class_name: str
    ignored: bool = False


@dataclasses.dataclass
class Annotated:
    """An image and what was written down of it.

    Attributes:
        path: Its file.
        size: Its `(height, width)`; None if nothing usable was said of it.
        boxes: Its boxes.
        faults: What is wrong with what was written down, parts of a sentence.
    """

    path: Path
    size: Size | None
    boxes: list[NamedBox] = dataclasses.field(default_factory=list)
    faults: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class AnnotatedSplit:
    """A split: its images, and what is wrong with files rather than with one of the images."""

    images: list[Annotated]
    problems: list[UnusableFile] = dataclasses.field(default_factory=list)


class BoxFileSource(Source):
    """Image files and their boxes.

    Args:
        paths: The files.
        root: The data set's folder, from which keys are counted.
        boxes: The boxes of all files.
        classes: How many classes there are.
    """

    has_boxes = True

    def __init__(self, paths: Sequence[Path], root: Path, boxes: BoxTable, classes: int):
        self._paths, self._root, self._boxes, self._classes = list(paths), root, boxes, classes

    def __len__(self) -> int:
        return len(self._paths)

    @cached_property
    def labels(self) -> np.ndarray:
        return self._boxes.by_class(self._classes)

    @property
    def boxes(self) -> BoxTable:
        return self._boxes

    def read(self, index: int) -> np.ndarray:
        image = read_image(self._paths[index])
        self._boxes.check_size(index, image, str(self._paths[index]))
        return image

    def describe(self, index: int) -> str:
        return shown_path(self._paths[index])

    def key(self, index: int) -> str:
        return _key(self._paths[index], self._root)

    def check_header(self, index: int) -> None:
        check_header(self._paths[index])

    def stored_bytes(self, index: int) -> int:
        return file_status(self._paths[index]).st_size

    @cached_property
    def _fingerprint(self) -> str:
        states = file_states((str(path), path) for path in self._paths)
        return digest("boxes", str(self._root.resolve()), self._boxes.tobytes(), *states)

    def fingerprint(self) -> str:
        return self._fingerprint


def task_of_annotations(
    request: DataRequest, root: Path, class_names: tuple[str, ...], splits: Mapping[str, AnnotatedSplit], layout: str
) -> TaskData:
    """Returns the data of image files with boxes; images with anything wrong are among its problems.

    Args:
        request: What was asked for.
        root: The data set's folder.
        class_names: The classes.
        splits: The images of `"train"`, and those of `"validation"` and `"test"` where they are there.
        layout: What is to be in the folder, a sentence for errors.

    Raises:
        DataError: If there is nothing to train on, or an image is in two splits.
    """
    _check_apart(splits, root, request.spec)
    usable: dict[str, list[Annotated]] = {}
    problems: dict[str, list[UnusableFile]] = {}
    for split, found in splits.items():
        own = {id(image): unusable_boxes(image, class_names) for image in found.images}
        problems[split] = [*found.problems, *(problem for problem in own.values() if problem)]
        images = [image for image in found.images if own[id(image)] is None]
        usable[split] = sorted(images, key=lambda image: _key(image.path, root))
    if not usable["train"]:
        if not request.skip_broken_images and problems["train"]:
            raise DataProblems([problem for found in problems.values() for problem in found], request.spec)
        raise DataError(f"{request.spec!r} has no training image. {layout}")
    learned = {box.class_name for image in usable["train"] for box in image.boxes}
    if not learned:
        raise DataError(f"{request.spec!r} has no box in any training image. {layout}")
    if missing := [name for name in class_names if name not in learned]:
        text = "%d class(es) of %s have no box in any training image: %s."
        logging.warning(text, len(missing), request.spec, some(missing))
    most = max([1, *(len(image.boxes) for images in usable.values() for image in images)])
    sources = {}
    for split, images in usable.items():
        if images:
            rows = [rows_of(image, class_names) for image in images]
            sizes = [image.size for image in images if image.size is not None]
            table = BoxTable.of_images(rows, sizes, most)
            sources[split] = BoxFileSource([image.path for image in images], root, table, len(class_names))
    return task_of_splits(request, root, class_names, sources, problems, target="boxes")


def rows_of(image: Annotated, class_names: Sequence[str]) -> np.ndarray:
    """Returns the boxes of an image that can be used, float32 `[n, 6]`; see `boxes.py`."""
    rows = [(*box.edges, class_names.index(box.class_name), box.ignored) for box in image.boxes]
    return np.array(rows, np.float32).reshape(-1, COLUMNS)


def unusable_boxes(image: Annotated, class_names: Sequence[str]) -> UnusableFile | None:
    """Returns what is wrong with an image and its boxes, as far as that is known without its pixels."""
    place = shown_path(image.path)
    if not image.path.exists():
        return UnusableFile(place, "no_image_of_boxes", f"Image {place!r} has annotations, but is not there.")
    faults = list(image.faults)
    if image.size is not None:
        edges = np.array([box.edges for box in image.boxes], np.float64).reshape(-1, 4)
        faults += box_faults([box.what for box in image.boxes], edges, image.size)
    for box in image.boxes:
        if box.class_name not in class_names:
            faults.append(f"{box.what} is of a class that is none of {len(class_names)} ({some(class_names, 10)})")
    if not faults:
        return None
    return UnusableFile(place, "boxes", f"Boxes of image {place!r} cannot be used: {some_faults(faults)}.")


def _check_apart(splits: Mapping[str, AnnotatedSplit], root: Path, spec: str) -> None:
    """Raises a `DataError` if an image is in two splits."""
    where: dict[str, str] = {}
    for split, found in splits.items():
        for key in {_key(image.path, root) for image in found.images}:
            if key in where:
                raise DataError(
                    f"In {spec!r} the {where[key]} and the {split} splits share images, for example {key!r}."
                )
            where[key] = split


def _key(path: Path, root: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()
