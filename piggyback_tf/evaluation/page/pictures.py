"""The images that a task gets wrong, with their answers: which they are, where they are, and how they are shown.

What is wrong, and how it is shown, depends on what is to be found in an image: `PICTURES` has it for each kind of
answers, and `picture_kinds.py` fills it. A kind that is not there has no pictures, and its page says so.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from piggyback_tf.data import DataError, Source, load_data
from piggyback_tf.evaluation.answers import Answers, stored_size
from piggyback_tf.evaluation.page.markup import Markup, element
from piggyback_tf.evaluation.page.subjects import Subject
from piggyback_tf.evaluation.segment_pictures import SIDE
from piggyback_tf.foreign_text import reason
from piggyback_tf.registry import Registry

# How many bytes all thumbnails of a page may take.
LARGEST_TOTAL = 12_000_000


@dataclasses.dataclass(frozen=True)
class PictureKind:
    """How answers of a kind are shown.

    Attributes:
        wrong: The places of the wrong images, those first that should be seen first.
        show: The picture of one and what is said of it, from the answers, its place, and what `thumbnail` returns, or
            None if the image cannot be shown.
        draw: Returns the picture of one from the answers, its place, and the image as its source has it; by default a
            thumbnail.
        wide: Whether a picture takes the room of three.
        both_ends: Whether the last of the wrong images are shown, too, if there are too many: half of those shown.
        told: What is said of the wrong images, behind how many they are.
        note: What the lines and the order of pictures mean.
        below: What follows the pictures of a task, from its label and its answers; None, nothing.
    """

    wrong: Callable[[Answers], list[int]]
    show: Callable[[Answers, int, Markup | None], Markup]
    draw: Callable[[Answers, int, np.ndarray], Markup] = lambda answers, place, pixels: thumbnail(
        pixels[..., :3], alternative_text(answers, place)
    )
    wide: bool = False
    both_ends: bool = False
    told: str = "wrong"
    note: str = ""
    below: Callable[[str, Answers], Markup | None] | None = None


# By `Answers.kind`.
PICTURES: Registry[PictureKind] = Registry("kind of pictures")


@dataclasses.dataclass
class Gallery:
    """The wrong images of a task.

    Attributes:
        wrong: How many there are; None if that is not known.
        figures: Those that are shown.
        sentences: What is to be said of them.
        kind: How they are shown.
        below: What follows them.
    """

    wrong: int | None
    figures: list[Markup]
    sentences: list[str]
    kind: PictureKind | None = None
    below: Markup | None = None


class Budget:
    """How many bytes of thumbnails there is room for.

    Args:
        left: Bytes.
    """

    def __init__(self, left: int = LARGEST_TOTAL):
        self._left = left

    def take(self, size: int) -> bool:
        """Takes some bytes; returns whether they were there."""
        if size > self._left:
            return False
        self._left -= size
        return True


def gallery(subject: Subject, most: int, budget: Budget, data_dir: str | None = None) -> Gallery | None:
    """Returns the wrong images of a task; None if its answers are not known.

    Args:
        subject: The task.
        most: How many are shown.
        budget: Bytes that are left for thumbnails.
        data_dir: Where TensorFlow Datasets keeps its data sets; None for its own default.
    """
    answers = subject.answers
    if answers is None:
        return None
    if answers.kind not in PICTURES:
        return Gallery(None, [], [f"Answers of the kind {answers.kind!r} have no pictures in this version."])
    kind = PICTURES[answers.kind]
    wrong, sentences = kind.wrong(answers), []
    last = most // 2 if kind.both_ends and len(wrong) > most else 0
    shown = wrong[: most - last] + wrong[len(wrong) - last :]
    places, trouble = (
        _places(answers, subject, [answers.images[place] for place in shown], data_dir) if shown else ({}, "")
    )
    if trouble:
        sentences.append(f"The images themselves are not shown: {trouble} Give the command where the run was started.")
    figures, lost, full = [], 0, False
    for place in shown:
        picture = None
        if not trouble:
            picture = _picture(kind, answers, place, places)
            lost += picture is None
            if picture is not None and not budget.take(len(picture)):
                picture, full = None, True
        figures.append(kind.show(answers, place, picture))
    if lost:
        sentences.append(
            f"{lost:,} of these images {'is' if lost == 1 else 'are'} no longer there, or other than when they were "
            "measured; their answers are shown alone."
        )
    if full:
        sentences.append(
            f"All pictures of a page may take {LARGEST_TOTAL // 1_000_000} MB; the other answers are shown alone. Give "
            "fewer --images, or fewer tasks."
        )
    below = kind.below(subject.label, answers) if kind.below else None
    return Gallery(len(wrong), figures, sentences, kind, below)


def _places(
    answers: Answers, subject: Subject, wanted: Sequence[str], data_dir: str | None
) -> tuple[dict[str, tuple[Source, int]], str]:
    """Returns where images are, by their keys, and why they cannot be found; one of both is empty."""
    settings = subject.settings
    # The validation images are drawn as they were for the training.
    drawn = {name: settings[name] for name in ("seed", "val_fraction") if type(settings.get(name)) in (int, float)}
    try:
        data = load_data(answers.data, data_dir=data_dir, raise_problems=False, **drawn)
        if answers.split not in data.splits:
            return {}, f"the data {answers.data!r} have no {answers.split} split."
        source, names = data.splits[answers.split], set(wanted)
        keys = {source.key(index): (source, index) for index in range(len(source)) if source.key(index) in names}
        return keys, ""
    except (DataError, OSError, ImportError) as error:
        return {}, f"{reason(error)}."


def _picture(kind: PictureKind, answers: Answers, place: int, places: dict[str, tuple[Source, int]]) -> Markup | None:
    """Returns the picture of an image, None if it is not there as it was."""
    if answers.images[place] not in places:
        return None
    source, index = places[answers.images[place]]
    if stored_size(source, index) != answers.sizes[place]:
        return None
    try:
        return kind.draw(answers, place, source.read(index))
    except (DataError, OSError):
        return None


def thumbnail(pixels: np.ndarray, alternative: str) -> Markup:
    """Returns an image within the page.

    Args:
        pixels: uint8 `[H, W, 3]`.
        alternative: What stands for it where it cannot be seen.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    height, width = pixels.shape[:2]
    tiny = max(height, width) <= SIDE // 2
    if max(height, width) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    # Of a few pixels each counts.
    image.save(stream, "PNG", optimize=True) if tiny else image.save(stream, "JPEG", quality=82, optimize=True)
    size = {"width": image.width, "height": image.height}
    if tiny:
        return png(stream.getvalue(), alternative, class_="tiny", **size)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return element("img", src=source, alt=alternative, **size)


def png(data: bytes, alternative: str, **attributes: Any) -> Markup:
    """Returns a PNG within the page.

    Args:
        data: Its file.
        alternative: What stands for it where it cannot be seen.
        **attributes: Those of the element.
    """
    return element("img", src=f"data:image/png;base64,{base64.b64encode(data).decode()}", alt=alternative, **attributes)


def figure(picture: Markup | None, lines: Sequence[Any], name: str) -> Markup:
    """Returns a picture with what is said of it.

    Args:
        picture: What `thumbnail` returned; None where there is none.
        lines: The answers.
        name: The image's name.
    """
    below = [element("span", line, class_="answer") for line in lines]
    below.append(element("span", name.rpartition("/")[2], class_="file", title=name))
    shown = element("div", picture or element("span", "no picture"), class_="frame")
    return element("figure", shown, element("figcaption", below))


def alternative_text(answers: Answers, place: int) -> str:
    """Returns what stands for an image where it cannot be seen."""
    return f"Image {answers.images[place]} of the {answers.split} split"
