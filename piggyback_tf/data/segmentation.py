"""`segmentation:PATH`: images with a label map each, in folders of their own or as PASCAL VOC keeps them.

Behind a `?` may stand, with `&` between: `values=1:0,2:1,*:255`, which class each value of a label map stands for;
`channel=R`, where label maps in colours hold the numbers in one channel; `sbd=PATH`, of the layout of PASCAL VOC: the
Semantic Boundaries Dataset, whose images are trained on, too.
"""

import dataclasses
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from absl import logging

from piggyback_tf.data.images import DataError, read_image
from piggyback_tf.data.label_maps import LabelMapError, LabelReader, check_size, read_class_names, reader_of
from piggyback_tf.data.sources import Source, TaskData, digest
from piggyback_tf.data.specs import DataRequest, path_and_options, register_data, task_of_splits
from piggyback_tf.data.split_folders import (
    SPLITS,
    existing_folder,
    file_states,
    file_status,
    images_by_name,
    listed_names,
    split_folders,
)
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile, check_header
from piggyback_tf.files import shown_path

CLASSES_FILE = "classes.txt"
LAYOUT = (
    "The layout must be PATH/classes.txt and PATH/train/images/NAME.jpg with PATH/train/labels/NAME.png, and "
    "optionally the same in PATH/val and PATH/test; or that of PASCAL VOC, with JPEGImages, SegmentationClass and "
    "ImageSets/Segmentation."
)
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """An image and its label map, by their files."""

    image: Path
    labels: Path


class SegmentationSource(Source):
    """Images and their label maps.

    Args:
        pairs: The files.
        root: The data set's folder, from which keys are counted.
        reader: How label maps are read.
    """

    has_maps = True

    def __init__(self, pairs: Sequence[Pair], root: Path, reader: LabelReader):
        self._pairs, self._root, self._reader = list(pairs), root, reader

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self._pairs), np.int32)

    def read(self, index: int) -> np.ndarray:
        pair = self._pairs[index]
        image, labels = read_image(pair.image), read_label_map(pair.labels, self._reader)
        check_size(labels, image, str(pair.labels), str(pair.image))
        return np.concatenate([image, labels[..., None]], axis=-1)

    def describe(self, index: int) -> str:
        return shown_path(self._pairs[index].image)

    def key(self, index: int) -> str:
        return Path(os.path.relpath(self._pairs[index].image, self._root)).as_posix()

    def check_header(self, index: int) -> None:
        check_header(self._pairs[index].image)
        if self._pairs[index].labels.suffix != ".mat":
            check_header(self._pairs[index].labels)

    def stored_bytes(self, index: int) -> int:
        return sum(file_status(path).st_size for path in (self._pairs[index].image, self._pairs[index].labels))

    @cached_property
    def _fingerprint(self) -> str:
        states = file_states((str(path), path) for pair in self._pairs for path in (pair.image, pair.labels))
        return digest("segmentation", str(self._root.resolve()), repr(self._reader), *states)

    def fingerprint(self) -> str:
        return self._fingerprint


def read_label_map(path: Path, reader: LabelReader) -> np.ndarray:
    """Returns the label map of a file, uint8 `(height, width)`: an image's, or that of a `.mat` of SBD.

    Raises:
        LabelMapError: If it does not say the class of every pixel.
        DataError: If the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"Label map {str(path)!r} cannot be read: {error.strerror or error}.") from error
    if path.suffix != ".mat":
        return reader.decode(data, str(path))
    from scipy.io import loadmat

    try:
        found = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except MemoryError:
        raise
    except Exception as error:  # scipy has no error of its own for damaged files.
        raise LabelMapError(
            f"Label map {str(path)!r} holds no GTcls.Segmentation: {str(error).rstrip('.')}."
        ) from error
    return reader.checked(np.asarray(found).astype(np.int64), str(path))


@register_data("segmentation", targets=("map",))
def load_segmentation(request: DataRequest) -> TaskData:
    """Answers `segmentation:PATH`; see the module."""
    path, options = path_and_options(request, ("values", "channel", "sbd"), LAYOUT)
    root = existing_folder(path, "segmentation:", LAYOUT)
    if (root / "JPEGImages").is_dir():
        class_names = _class_names(root) or VOC_CLASSES
        reader = reader_of(class_names, options, request.spec)
        sbd = existing_folder(options["sbd"], "sbd=", LAYOUT) if "sbd" in options else None
        splits, problems = _voc_splits(root, sbd)
    else:
        if "sbd" in options:
            raise DataError(f"sbd= goes with the layout of PASCAL VOC, which {str(root)!r} does not have. {LAYOUT}")
        class_names = _class_names(root)
        if not class_names:
            raise DataError(f"There is no file {str(root / CLASSES_FILE)!r} with the names of the classes. {LAYOUT}")
        reader = reader_of(class_names, options, request.spec)
        splits, problems = _folder_splits(root)
    if not splits["train"]:
        if not request.skip_broken_images and any(problems.values()):
            raise DataProblems([problem for found in problems.values() for problem in found], request.spec)
        raise DataError(f"{request.spec!r} has no training image with a label map. {LAYOUT}")
    sources = {split: SegmentationSource(pairs, root, reader) for split, pairs in splits.items() if pairs}
    return task_of_splits(request, root, class_names, sources, problems, target="map")


def _class_names(root: Path) -> tuple[str, ...]:
    """Returns the classes of `classes.txt`; nothing if there is no file."""
    file = root / CLASSES_FILE
    if not file.exists():
        return ()
    names = read_class_names(file)
    if len(names) < 2:
        raise DataError(f"File {str(file)!r} names {len(names)} class; a task needs two.")
    return names


def _folder_splits(root: Path) -> tuple[dict[str, list[Pair]], dict[str, list[UnusableFile]]]:
    """Returns the pairs of every split of a folder, and what is wrong with its files."""
    folders = split_folders(root, [name for names in SPLITS.values() for name in names if (root / name).is_dir()])
    splits, problems = {split: [] for split in SPLITS}, {split: [] for split in SPLITS}
    for split, name in folders.items():
        images, labels = (images_by_name(root / name / kind, LAYOUT) for kind in ("images", "labels"))
        splits[split] = _paired(images, labels, problems[split])
    return splits, problems


def _paired(images: Mapping[str, Path], labels: Mapping[str, Path], problems: list[UnusableFile]) -> list[Pair]:
    """Returns images with their label maps; `problems` gets those that have none, and label maps without images."""
    for name in images.keys() - labels.keys():
        place = shown_path(images[name])
        problems.append(UnusableFile(place, "no_label_map", f"Image {place!r} has no label map of the same name."))
    for name in labels.keys() - images.keys():
        place = shown_path(labels[name])
        problems.append(UnusableFile(place, "no_image_of_map", f"Label map {place!r} has no image of the same name."))
    problems.sort(key=lambda problem: problem.place)
    return [Pair(images[name], labels[name]) for name in images if name in labels]


def _voc_splits(root: Path, sbd: Path | None) -> tuple[dict[str, list[Pair]], dict[str, list[UnusableFile]]]:
    """Returns the pairs of every split in the layout of PASCAL VOC.

    The labels of VOC's own test images are not public. Where they are not there, the images that it calls `val` are the
    test split, as in the literature, and validation images are carved out of those for training. With `sbd` its images
    for training are added, and what is trained on is left out of `val`, as Long et al. (CVPR 2015) do.
    """
    names = {
        split: listed_names(root / "ImageSets/Segmentation" / f"{split}.txt") for split in ("train", "val", "test")
    }
    if not names["train"]:
        boxes = f" For boxes write voc:{root}." if (root / "ImageSets/Main").is_dir() else ""
        raise DataError(f"{str(root / 'ImageSets/Segmentation/train.txt')!r} names no images. {LAYOUT}{boxes}")

    def pairs(found: Iterable[str]) -> list[Pair]:
        return [Pair(root / f"JPEGImages/{n}.jpg", root / f"SegmentationClass/{n}.png") for n in found]

    labelled = [pair for pair in pairs(names["test"]) if pair.labels.exists()]
    held_out = {"validation": pairs(names["val"]), "test": labelled} if labelled else {"test": pairs(names["val"])}
    train = {pair.image.stem: pair for pair in pairs(names["train"])}
    if sbd is not None:
        folder = sbd / "dataset" if (sbd / "dataset").is_dir() else sbd
        added = listed_names(folder / "train.txt")
        if not added:
            raise DataError(f"{str(folder / 'train.txt')!r} names no images; it is the list of the dataset's own.")
        train |= {n: Pair(folder / f"img/{n}.jpg", folder / f"cls/{n}.mat") for n in added if n not in train}
        held_out = {split: [p for p in own if p.image.stem not in train] for split, own in held_out.items()}
        logging.info("%d images of %s are trained on, too.", len(added), sbd)
    splits = {"train": [train[name] for name in sorted(train)], **held_out}
    problems: dict[str, list[UnusableFile]] = {split: [] for split in SPLITS}
    for split, own in splits.items():
        for pair in own:
            for path, kind, what in (
                (pair.image, "no_image_of_map", "Image"),
                (pair.labels, "no_label_map", "Label map"),
            ):
                if not path.exists():
                    problems[split].append(
                        UnusableFile(shown_path(path), kind, f"{what} {shown_path(path)!r} is not there.")
                    )
        splits[split] = [pair for pair in own if pair.image.exists() and pair.labels.exists()]
    return {split: splits.get(split, []) for split in SPLITS}, problems
