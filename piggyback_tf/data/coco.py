"""`coco:PATH`: images with boxes, in files of annotations as COCO has them, one for each split.

Behind a `?` may stand, with `&` between: `annotations=FOLDER` and `images=FOLDER`, both counted from `PATH`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.data.box_files import Annotated, AnnotatedSplit, NamedBox, task_of_annotations
from piggyback_tf.data.images import DataError
from piggyback_tf.data.sources import TaskData
from piggyback_tf.data.specs import DataRequest, path_and_options, register_data
from piggyback_tf.data.split_folders import existing_folder
from piggyback_tf.data.unusable_files import UnusableFile
from piggyback_tf.files import is_text, shown_path
from piggyback_tf.foreign_text import reason, shown

LAYOUT = (
    "The layout must be PATH/annotations/instances_train.json with the images in PATH/train, PATH/images/train, "
    "PATH/images, PATH/JPEGImages or PATH, and optionally the same for val and test; or "
    "PATH/train/_annotations.coco.json with its images beside it."
)
# Where files of annotations are looked for: the first folder that has one counts.
_FOLDERS = ("annotations", "coco", ".")
_SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_FILE = re.compile(rf"instances_(({'|'.join(_SPLITS)})(?:\d{{4}})?)\.json")
_BESIDE = "_annotations.coco.json"


@register_data("coco", targets=("boxes",))
def load_coco(request: DataRequest) -> TaskData:
    """Answers `coco:PATH`; classes are the categories of the training images, in the order of their ids."""
    path, options = path_and_options(request, ("annotations", "images"), LAYOUT)
    root = existing_folder(path, "coco:", LAYOUT)
    files = _files(root, options)
    if "train" not in files:
        raise DataError(f"{request.spec!r} has no annotations of training images. {LAYOUT}")
    found = {split: _CocoFile(file, images) for split, (file, images) in files.items()}
    names = tuple(found["train"].categories[number] for number in sorted(found["train"].categories))
    if not names:
        raise DataError(f"File {str(files['train'][0])!r} has no category with an id and a name.")
    return task_of_annotations(request, root, names, {split: file.split for split, file in found.items()}, LAYOUT)


def _files(root: Path, options: Mapping[str, str]) -> dict[str, tuple[Path, Path]]:
    """Returns the file of annotations of each split, and the folder of its images."""
    found: dict[str, tuple[Path, Path]] = {}
    folders = [root / options["annotations"]] if "annotations" in options else [root / name for name in _FOLDERS]
    for folder in folders:
        named = [(file, _FILE.fullmatch(file.name)) for file in sorted(folder.glob("instances_*.json"))]
        for file, match in named:
            if match is not None:
                _add(found, _SPLITS[match[2]], file, _image_folder(root, match[1], match[2], options))
        if found:
            return found
    for name, split in _SPLITS.items():
        if (file := root / name / _BESIDE).is_file():
            _add(found, split, file, root / options["images"] if "images" in options else file.parent)
    return found


def _add(found: dict[str, tuple[Path, Path]], split: str, file: Path, images: Path) -> None:
    if split in found:
        raise DataError(
            f"{str(found[split][0])!r} and {str(file)!r} are both annotations of the {split} split; move one of them "
            "away, or name another folder with ?annotations=FOLDER."
        )
    found[split] = file, images


def _image_folder(root: Path, name: str, split: str, options: Mapping[str, str]) -> Path:
    """Returns the folder of the images of a file of annotations: the first that is there."""
    if "images" in options:
        return existing_folder(str(root / options["images"]), "images=", LAYOUT)
    places = (name, split, f"images/{name}", f"images/{split}", "images", "JPEGImages")
    return next((root / place for place in places if (root / place).is_dir()), root)


class _CocoFile:
    """What a file of annotations says.

    Args:
        path: The file.
        images: The folder of its images.
    """

    def __init__(self, path: Path, images: Path):
        self._path, self._folder = path, images
        self._content = _read(path)
        self.split = AnnotatedSplit([])
        self.categories = self._categories()
        self._boxes(self._images())
        # With the outlines of its objects it takes gigabytes.
        self._content = {}

    def _fault(self, text: str) -> None:
        place = shown_path(self._path)
        self.split.problems.append(UnusableFile(place, "annotations", f"{text} in file {place!r}."))

    def _entries(self, name: str) -> list[dict[str, Any]]:
        """Returns the entries of a list that are objects."""
        entries = self._content[name]
        for place, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self._fault(f"Entry {place} of {name!r} is no object")
        return [entry for entry in entries if isinstance(entry, dict)]

    def _categories(self) -> dict[int, str]:
        """Returns the names of categories by their ids."""
        found: dict[int, str] = {}
        for category in self._entries("categories"):
            number, name = category.get("id"), category.get("name")
            if type(number) is not int:
                self._fault(f"Category {shown(name)} has the id {shown(number)}, which is no whole number,")
            elif not isinstance(name, str) or not name.strip() or not is_text(name):
                self._fault(f"Category {number} has no name that is a text")
            elif number in found:
                self._fault(f"Category {number} is there twice")
            elif name.strip() in found.values():
                self._fault(f"Two categories have the name {shown(name.strip())}")
            else:
                found[number] = name.strip()
        return found

    def _images(self) -> dict[Any, Annotated]:
        """Returns the images by their ids."""
        found: dict[Any, Annotated] = {}
        paths: dict[Path, Annotated] = {}
        for entry in self._entries("images"):
            number, name = entry.get("id"), entry.get("file_name")
            if not isinstance(name, str) or not name or not is_text(name):
                self._fault(f"Image {shown(number)} has no file_name that is a text")
                continue
            path = self._folder / name
            if path in paths:
                paths[path].faults.append("it is listed twice")
                continue
            image = paths[path] = Annotated(path, None)
            self.split.images.append(image)
            height, width = entry.get("height"), entry.get("width")
            if type(height) is int and type(width) is int and min(height, width) > 0:
                image.size = height, width
            else:
                image.faults.append("its height and width must be whole numbers of pixels, at least 1")
            if type(number) not in (int, str):
                image.faults.append(f"its id {shown(number)} is neither a whole number nor a text")
            elif number in found:
                for same in (image, found[number]):
                    same.faults.append(f"its id {shown(number)} is another image's, too")
            else:
                found[number] = image
        return found

    def _boxes(self, images: Mapping[Any, Annotated]) -> None:
        """Gives the images their boxes."""
        seen = set()
        for place, entry in enumerate(self._entries("annotations")):
            number, image_id, category = entry.get("id"), entry.get("image_id"), entry.get("category_id")
            what = f"annotation {shown(number)}" if number is not None else f"the annotation at place {place}"
            image = images.get(image_id) if type(image_id) in (int, str) else None
            if image is None:
                self._fault(f"{what[:1].upper()}{what[1:]} is of image {shown(image_id)}, which is not there,")
                continue
            if type(number) in (int, str):
                if number in seen:
                    image.faults.append(f"{what} is there twice")
                seen.add(number)
            name = self.categories.get(category) if type(category) is int else None
            if name is None:
                image.faults.append(f"{what} is of category {shown(category)}, which has no name")
                continue
            box, crowd = _numbers(entry.get("bbox")), entry.get("iscrowd", 0)
            if box is None:
                image.faults.append(f"{what} has the bbox {shown(entry.get('bbox'))}, which is no four numbers")
            elif crowd not in (0, 1):
                image.faults.append(f"{what} has iscrowd={shown(crowd)}; it is 0 or 1")
            else:
                x, y, width, height = box
                edges = (y, x, y + height, x + width)
                image.boxes.append(NamedBox(f"{what} ({shown(name)})", edges, name, bool(crowd)))


def _numbers(value: Any) -> tuple[float, float, float, float] | None:
    """Returns the four numbers of a box; None if it is none."""
    if not isinstance(value, list) or len(value) != 4 or any(type(one) not in (int, float) for one in value):
        return None
    try:
        first, second, third, fourth = (float(one) for one in value)
    except OverflowError:  # A whole number of hundreds of digits.
        return None
    return first, second, third, fourth


def _read(path: Path) -> dict[str, Any]:
    """Returns the content of a file of annotations.

    Raises:
        DataError: If it is none.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"File {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"File {str(path)!r} is damaged, or no JSON: {reason(error)}.") from error
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"File {str(path)!r} has no list {name!r}, so that it is no file of COCO's annotations.")
    return content
