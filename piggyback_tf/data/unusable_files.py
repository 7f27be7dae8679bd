"""Files of a data set that cannot be used: found one by one, told all at once, by kind, with what to do."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from piggyback_tf.data.images import EXTENSIONS, DataError, has_image_extension, unidentified
from piggyback_tf.foreign_text import printable

HEIC_EXTENSIONS = ("heic", "heif", "hif")
FLAG = "--skip_broken_images"
# So many of a kind are listed in a message.
_LISTED = 10
_TO_JPEG = (
    "Convert them to JPEG: on a Mac with `sips -s format jpeg PHOTO.HEIC --out PHOTO.jpg`, elsewhere with ImageMagick, "
    "`magick mogrify -format jpg *.HEIC`. An iPhone set to the most compatible format takes JPEGs at once."
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of problem.

    Attributes:
        one: What one file is, such as `"empty file"`.
        many: The same of several.
        cure: What to do; empty where it goes without saying.
        explains: Whether the kind says all. Otherwise each file is listed with its own sentence.
        skippable: Whether `skip_broken_images` leaves such files out.
    """

    one: str
    many: str
    cure: str = ""
    explains: bool = True
    skippable: bool = True


# By the name that errors of images carry.
KINDS = {
    "heic": Kind("photo in HEIC, which Pillow does not read", "photos in HEIC, which Pillow does not read", _TO_JPEG),
    "empty": Kind("empty file", "empty files"),
    "no_image": Kind("file that is no image, but has the name of one", "files that are no images, but have such names"),
    "damaged": Kind("image that is damaged or cut off", "images that are damaged or cut off", explains=False),
    "no_range": Kind(
        "image whose range of values is not known",
        "images whose range of values is not known",
        "Save such images with 8 bits a channel, for example as PNG.",
        explains=False,
    ),
    "unreadable": Kind("file that cannot be read", "files that cannot be read", explains=False),
    "extension": Kind(
        "file that is not an image by its name",
        "files that are not images by their names",
        f"Move such files away, or give them the extension that they need; valid: {', '.join(EXTENSIONS)}.",
    ),
    "no_class": Kind(
        "image in no class folder", "images in no class folder", "Move such images into the folders of classes."
    ),
    "no_label_map": Kind(
        "image without a label map",
        "images without label maps",
        "Each image needs a label map of the same name, without regard to the extension.",
    ),
    "no_image_of_map": Kind("label map without an image", "label maps without images"),
    "label_map": Kind("label map that cannot be used", "label maps that cannot be used", explains=False),
    "no_image_of_boxes": Kind(
        "image that is not there, but has annotations", "images that are not there, but have annotations"
    ),
    "no_boxes": Kind(
        "image without a file of annotations",
        "images without files of annotations",
        "An image in which there is nothing needs a file without objects.",
    ),
    "boxes": Kind("image whose boxes cannot be used", "images whose boxes cannot be used", explains=False),
    "annotations": Kind("fault of a file of annotations", "faults of files of annotations", explains=False),
    "unfit": Kind(
        "image whose size does not fit the augmentation",
        "images whose sizes do not fit the augmentation",
        "Begin the augmentation with a resize.",
        explains=False,
        skippable=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class UnusableFile:
    """Something that is wrong with one file, or one record.

    Attributes:
        place: Where it is, as `Source.describe` says.
        kind: A key of `KINDS`.
        sentence: What is wrong, with the place.
    """

    place: str
    kind: str
    sentence: str


class DataProblems(DataError):
    """All that is wrong with the files of data sets.

    Args:
        problems: At least one.
        name: What to call the data, such as `"folder:/data/cats"`.
        flag: What leaves out what can be left out; empty where nothing does.
    """

    def __init__(self, problems: Sequence[UnusableFile], name: str, flag: str = FLAG):
        self.problems = tuple(problems)
        super().__init__(describe_problems(self.problems, name, flag=flag))


def describe_problems(
    problems: Sequence[UnusableFile], name: str, listed: int | None = _LISTED, *, flag: str = FLAG
) -> str:
    """Returns a text about problems: how many of each kind, which files, what to do.

    Args:
        problems: At least one.
        name: What to call the data.
        listed: So many of a kind are listed; None lists all.
        flag: What leaves out what can be left out; empty where nothing does.
    """
    skippable = [problem for problem in problems if flag and KINDS[problem.kind].skippable]
    if len(problems) == 1:
        return " ".join([problems[0].sentence, *([f"{flag} leaves it out."] if skippable else [])])
    lines = [f"{len(problems):,} files of {name} cannot be used:"]
    for kind_name, kind in KINDS.items():
        own = [problem for problem in problems if problem.kind == kind_name]
        if own:
            lines.append(f"  {len(own):,} {kind.one if len(own) == 1 else kind.many}. {kind.cure}".rstrip())
            lines += [f"    {_line(problem)}" for problem in own[:listed]]
            if len(own) > len(own[:listed]):
                lines.append(f"    ... and {len(own) - listed:,} more")
    if skippable:
        whom = "them" if len(skippable) == len(problems) else "all but those that do not fit the augmentation"
        lines.append(f"{flag} leaves {whom} out.")
    return "\n".join(lines)


def _line(problem: UnusableFile) -> str:
    """Returns a problem as a line under its kind; names of files may hold what is no text."""
    return printable(problem.place if KINDS[problem.kind].explains else problem.sentence)


def are_all_listed(problems: Sequence[UnusableFile]) -> bool:
    """Returns whether the text of `DataProblems` lists all of some problems."""
    return all(sum(problem.kind == kind for problem in problems) <= _LISTED for kind in KINDS)


def unusable_file(error: DataError, place: str) -> UnusableFile:
    """Returns the problem that an error of one image stands for."""
    return UnusableFile(place, error.kind, str(error))


def is_photo_by_name(path: str | os.PathLike) -> bool:
    """Whether somebody takes a file for a photo, by its name: also photos that cannot be used, so that it is said."""
    return has_image_extension(path) or _is_heic(path)


def _is_heic(path: str | os.PathLike) -> bool:
    return Path(path).suffix.lower().removeprefix(".") in HEIC_EXTENSIONS


def no_image_by_name(path: str) -> UnusableFile:
    """Returns the problem of a file in a class folder whose name is no image's."""
    if _is_heic(path):
        return UnusableFile(path, "heic", f"File {path!r} is a {KINDS['heic'].one}. {_TO_JPEG}")
    kind = KINDS["extension"]
    return UnusableFile(path, "extension", f"File {path!r} in a class folder is not an image by its name. {kind.cure}")


def check_header(path: str | os.PathLike) -> None:
    """Raises what `read_image` would raise, as far as it shows in the first bytes of a file; decodes no pixels.

    Raises:
        BrokenImageError: If the file is empty, or no image.
        DataError: If it cannot be read.
    """
    start = b""
    try:
        with Path(path).open("rb") as stream:
            start = stream.read(12)
            stream.seek(0)
            Image.open(stream).close()
    except UnidentifiedImageError as error:
        raise unidentified(str(path), start) from error
    except OSError as error:
        raise DataError(f"Image file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    except Exception:  # Such as a long text before the pixels, which does not count: whoever decodes it is to say.
        return
