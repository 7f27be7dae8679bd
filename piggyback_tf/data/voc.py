"""`voc:PATH`: images with boxes as PASCAL VOC keeps them. Its label maps are read by `segmentation:PATH`."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.data.augment import Size
from piggyback_tf.data.box_files import (
    Annotated,
    AnnotatedSplit,
    NamedBox,
    rows_of,
    task_of_annotations,
    unusable_boxes,
)
from piggyback_tf.data.boxes import BoxTable
from piggyback_tf.data.images import DataError, read_image
from piggyback_tf.data.label_maps import read_class_names
from piggyback_tf.data.sources import Original, TaskData
from piggyback_tf.data.specs import DataRequest, path_and_options, register_data
from piggyback_tf.data.split_folders import existing_folder, images_by_name, listed_names
from piggyback_tf.data.unusable_files import UnusableFile
from piggyback_tf.files import shown_path
from piggyback_tf.foreign_text import reason, shown

LAYOUT = (
    "The layout must be PATH/JPEGImages/NAME.jpg, PATH/Annotations/NAME.xml, and lists of names, "
    "PATH/ImageSets/Main/train.txt and optionally val.txt and test.txt; PATH/classes.txt may name the classes."
)
CLASSES_FILE = "classes.txt"
_EDGES = ("ymin", "xmin", "ymax", "xmax")
# By what the lists are called.
_LISTS = {"train": "train", "val": "validation", "test": "test"}


@register_data("voc", targets=("boxes",))
def load_voc(request: DataRequest) -> TaskData:
    """Answers `voc:PATH`; classes are those of `classes.txt`, or the sorted names of what is in the training images.

    Nobody but VOC has the boxes of its later test images. If no image of `test.txt` has any, the images that VOC calls
    `val` are the test split, as in the literature, and validation images are carved out of those for training.
    """
    path, _ = path_and_options(request, (), LAYOUT)
    root = existing_folder(path, "voc:", LAYOUT)
    names = {split: listed_names(root / f"ImageSets/Main/{name}.txt") for name, split in _LISTS.items()}
    if not names["train"]:
        maps = root / "ImageSets/Segmentation"
        other = f" For label maps write segmentation:{root}." if maps.is_dir() else ""
        raise DataError(f"{str(root / 'ImageSets/Main/train.txt')!r} names no images. {LAYOUT}{other}")
    if not any(_annotations(root, name).exists() for name in names["test"]):
        names["test"], names["validation"] = names["validation"], []
    images = images_by_name(root / "JPEGImages", LAYOUT)
    splits = {split: _read_split(root, own, images) for split, own in names.items() if own}
    class_names = _class_names(root, splits["train"])
    return task_of_annotations(request, root, class_names, splits, LAYOUT)


def voc_original(path: Path, class_names: Sequence[str]) -> Original | None:
    """Returns the boxes of one image in the layout of PASCAL VOC.

    Args:
        path: The image.
        class_names: Those of the task.

    Returns:
        None if the image is not in a folder `JPEGImages`, or `Annotations` beside it has no file for the image.

    Raises:
        DataError: If the image cannot be read, or its boxes cannot be used.
    """
    file = _annotations(path.parent.parent, path.stem)
    if path.parent.name != "JPEGImages" or not file.is_file():
        return None
    image = Annotated(path, None)
    _read(file, image)
    if problem := unusable_boxes(image, class_names):
        raise DataError(problem.sentence)
    size = (image.size[0], image.size[1]) if image.size else (0, 0)
    boxes = rows_of(image, class_names)
    BoxTable.of_images([boxes], [size]).check_size(0, read_image(path), shown_path(path))
    return Original(size, boxes)


def _annotations(root: Path, name: str) -> Path:
    return root / f"Annotations/{name}.xml"


def _class_names(root: Path, train: AnnotatedSplit) -> tuple[str, ...]:
    file = root / CLASSES_FILE
    if not file.exists():
        return tuple(sorted({box.class_name for image in train.images for box in image.boxes}))
    if not (names := read_class_names(file)):
        raise DataError(f"File {str(file)!r} names no class.")
    return names


def _read_split(root: Path, names: list[str], images: dict[str, Path]) -> AnnotatedSplit:
    """Returns the images of a list of names."""
    split, seen = AnnotatedSplit([]), set()
    for name in names:
        image = Annotated(images.get(name, root / f"JPEGImages/{name}.jpg"), None)
        if name in seen:
            place = shown_path(image.path)
            split.problems.append(UnusableFile(place, "annotations", f"Image {place!r} is in one list twice."))
            continue
        seen.add(name)
        file = _annotations(root, name)
        if not file.exists():
            place = shown_path(image.path)
            split.problems.append(UnusableFile(place, "no_boxes", f"Image {place!r} has no file {shown_path(file)!r}."))
            continue
        _read(file, image)
        split.images.append(image)
    return split


def _read(file: Path, image: Annotated) -> None:
    """Gives an image what a file says of it; what is wrong is among its faults."""
    try:
        found = ET.fromstring(file.read_bytes())
    except OSError as error:
        image.faults.append(f"file {shown_path(file)!r} cannot be read: {error.strerror or error}")
        return
    except (ET.ParseError, ValueError, LookupError) as error:  # An encoding that does not exist is a LookupError.
        image.faults.append(f"file {shown_path(file)!r} is damaged, or no XML: {reason(error)}")
        return
    image.size = _size(found)
    if image.size is None:
        image.faults.append(f"file {shown_path(file)!r} has no height and width of at least 1 in <size>")
    for number, one in enumerate(found.findall("object"), start=1):
        name = (one.findtext("name") or "").strip()
        what = f"object {number} ({shown(name)})"
        top, left, bottom, right = (
            _number(one.findtext(f"bndbox/{edge}")) for edge in ("ymin", "xmin", "ymax", "xmax")
        )
        difficult = (one.findtext("difficult") or "0").strip()
        if not name:
            image.faults.append(f"object {number} has no name")
        elif top is None or left is None or bottom is None or right is None:
            image.faults.append(f"{what} has no four numbers in <bndbox>")
        elif difficult not in ("0", "1"):
            image.faults.append(f"{what} has {shown(difficult)} in <difficult>; it is 0 or 1")
        else:
            # VOC counts from 1, and its last row and column are in the box.
            image.boxes.append(NamedBox(what, (top - 1, left - 1, bottom, right), name, difficult == "1"))


def _size(found: ET.Element) -> Size | None:
    height, width = (_number(found.findtext(f"size/{side}")) for side in ("height", "width"))
    # Written so that it holds for no NaN.
    if height is None or width is None or not (1 <= height < 1e9 and 1 <= width < 1e9):
        return None
    return int(height), int(width)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
