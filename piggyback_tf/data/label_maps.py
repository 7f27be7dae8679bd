"""Label maps: images whose pixels are numbers of classes, not colours."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from piggyback_tf.data.geometry import VOID
from piggyback_tf.data.images import BrokenImageError, DataError
from piggyback_tf.files import local_path

# In `LabelReader.values`: every value that is not named; `*` in a data spec.
OTHERS = -1
# Indices are kept in bytes, and the last one is `VOID`.
MOST_CLASSES = VOID
_CHANNELS = {"R": 0, "G": 1, "B": 2}


class LabelMapError(BrokenImageError):
    """A label map that does not say the class of every pixel of its image."""

    def __init__(self, message: str):
        super().__init__(message, "label_map")


@dataclasses.dataclass(frozen=True)
class LabelReader:
    """Reads label maps.

    Attributes:
        class_names: The classes; a label map holds their numbers, and `VOID` where there is none of them.
        values: Which class each value of a file stands for, `VOID` for none, with `OTHERS` for all that are not there;
            None where a file holds the numbers.
        channel: `"R"`, `"G"` or `"B"`, which channel of a file in colours holds the numbers; None where they are grey
            or indices of a palette.
    """

    class_names: tuple[str, ...]
    values: Mapping[int, int] | None = None
    channel: str | None = None

    def decode(self, data: bytes, name: str) -> np.ndarray:
        """Returns the label map of an image file, uint8 `(height, width)`.

        A palette says how to show the indices, and nothing else; it is not looked at.

        Args:
            data: The content of the file.
            name: What to call it in an error message.

        Raises:
            LabelMapError: If it is no such file, or has a value without a class.
        """
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                lossy, mode, pixels = image.format not in ("PNG", "TIFF", "BMP", "GIF"), image.mode, np.asarray(image)
        except MemoryError:
            raise
        except Exception as error:
            raise LabelMapError(f"Label map {name!r} is no image file: {str(error).rstrip('.')}.") from error
        if lossy:
            raise LabelMapError(f"Label map {name!r} is in a format that may change numbers; make it a PNG.")
        if pixels.ndim == 3:
            if self.channel is None:
                raise LabelMapError(
                    f"Label map {name!r} has colours ({mode}) where numbers of classes are expected. Save it in grey, "
                    "or with a palette whose indices are the classes; if one channel holds them, name it: ?channel=R."
                )
            pixels = pixels[..., _CHANNELS[self.channel]]
        elif self.channel is not None:
            raise LabelMapError(f"Label map {name!r} has no channel {self.channel}: it is in grey, or has a palette.")
        return self.checked(pixels.astype(np.int64), name)

    def checked(self, values: np.ndarray, name: str) -> np.ndarray:
        """Returns the label map of the values of a file, uint8 of the same shape.

        Args:
            values: Whole numbers `(height, width)`.
            name: What to call the file in an error message.

        Raises:
            LabelMapError: If a value has no class.
        """
        if values.ndim != 2:
            raise LabelMapError(f"Label map {name!r} has the shape {values.shape}, not a height and a width.")
        known = dict(self.values) if self.values is not None else {i: i for i in range(len(self.class_names))}
        known.setdefault(VOID, VOID)
        there, places = np.unique(values, return_inverse=True)
        others = known.pop(OTHERS, None)
        known |= {int(value): others for value in there if others is not None and int(value) not in known}
        if strange := [int(value) for value in there if int(value) not in known]:
            last = len(self.class_names) - 1
            valid = "those named by values=" if self.values is not None else f"0 to {last}"
            count = int((values == strange[0]).sum())
            raise LabelMapError(
                f"Label map {name!r} has the value {strange[0]} at {count:,} pixels, which stands for no class. Valid: "
                f"{valid}, and {VOID} for pixels of no class."
            )
        return np.array([known[int(value)] for value in there], np.uint8)[places.reshape(values.shape)]


def check_size(labels: np.ndarray, image: np.ndarray, name: str, image_name: str) -> None:
    """Raises a `LabelMapError` if a label map has not the height and width of its image."""
    if labels.shape != image.shape[:2]:
        raise LabelMapError(
            f"Label map {name!r} is {labels.shape[0]} pixels high and {labels.shape[1]} wide, but its image "
            f"{image_name!r} is {image.shape[0]} high and {image.shape[1]} wide."
        )


def parse_values(text: str, spec: str) -> dict[int, int]:
    """Reads `"1:0,2:1,*:255"`: which class each value of a file stands for, 255 for none, `*` for all other values.

    Raises:
        DataError: If it is not written like that.
    """
    found: dict[int, int] = {}
    for item in text.split(","):
        value, colon, label = item.partition(":")
        number = OTHERS if value == "*" else int(value) if value.isdecimal() else None
        if not colon or number is None or not label.isdecimal() or int(label) > VOID or number in found:
            raise DataError(
                f"Cannot read {item!r} of values= in the data spec {spec!r}. It is VALUE:CLASS,VALUE:CLASS,... with "
                f"each value once, * for all others, and the class {VOID} for pixels of no class, as in "
                f"values=1:0,2:1,*:{VOID}."
            )
        found[number] = int(label)
    return found


def reader_of(class_names: tuple[str, ...], options: Mapping[str, Any], spec: str) -> LabelReader:
    """Returns how the label maps of a data spec are read.

    Args:
        class_names: The classes.
        options: What stands behind the `?` of the spec; of these `values` and `channel`.
        spec: The spec, for errors.

    Raises:
        DataError: If an option is not valid, or there are too many classes.
    """
    if len(class_names) > MOST_CLASSES:
        raise DataError(f"{spec!r} has {len(class_names)} classes; label maps have at most {MOST_CLASSES}.")
    channel = options.get("channel")
    if channel is not None and channel not in _CHANNELS:
        raise DataError(f"channel= in the data spec {spec!r} is R, G or B, but was {channel!r}.")
    values = parse_values(options["values"], spec) if "values" in options else None
    if values and (high := [label for label in values.values() if len(class_names) <= label != VOID]):
        raise DataError(f"values= in the data spec {spec!r} names class {high[0]}, but there are {len(class_names)}.")
    return LabelReader(class_names, values, channel)


def read_class_names(file: Path) -> tuple[str, ...]:
    """Returns the classes of a file, a line each, with or without their numbers.

    Raises:
        DataError: If the file cannot be read, or its numbers are not 0, 1, ...
    """
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"File {str(file)!r} cannot be read as text in UTF-8: {error}.") from error
    words = [line.split(maxsplit=1) for line in lines]
    if not all(len(pair) == 2 and pair[0].isdecimal() for pair in words):
        return tuple(lines)
    named = [(int(number), name) for number, name in words if int(number) != VOID]
    if sorted(number for number, _ in named) != list(range(len(named))):
        raise DataError(f"The numbers in {str(file)!r} must be 0, 1, ... with each once, and {VOID} for no class.")
    return tuple(name for _, name in sorted(named))


def class_names_of(options: Mapping[str, str], spec: str, labels: str = "label maps") -> tuple[str, ...]:
    """Returns the classes of labels that have no names themselves: what `classes=` of a data spec says.

    Args:
        options: What stands behind the `?` of the spec; of these `classes`, names or a file of them.
        spec: The spec, for errors.
        labels: What the labels are, for errors.

    Raises:
        DataError: If it says nothing, or names fewer than two.
    """
    text = options.get("classes")
    if text is None:
        raise DataError(
            f"{spec!r} has {labels}, whose classes have no names. Give them: ?classes=NAME,NAME,... or "
            "?classes=FILE, a text file with a class in each line."
        )
    is_file = "," not in text
    names = (
        read_class_names(local_path(text, "classes=")) if is_file else tuple(part.strip() for part in text.split(","))
    )
    if len(names) < 2:
        raise DataError(f"classes= of {spec!r} names {len(names)} class; a task needs two.")
    return names
