"""The images that a task gets wrong, with their answers: which they are, where they are, and how they are shown.

What is wrong, and how it is shown, depends on what is to be found in an image: `PICTURES` has it for each kind of
answers. A kind that is not there has no pictures, and its page says so.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from piggyback_tf.data import DataError, Source, load_data
from piggyback_tf.evaluation.answers import Answers, stored_size
from piggyback_tf.evaluation.page.markup import Markup, element, joined, table
from piggyback_tf.evaluation.page.subjects import Subject
from piggyback_tf.foreign_text import reason
from piggyback_tf.registry import Registry
from piggyback_tf.top_k import wilson_interval

# Longest side of a thumbnail in pixels, and how many bytes all of a page may take.
SIDE = 160
LARGEST_TOTAL = 12_000_000
# Pairs of classes that are listed.
_PAIRS = 10


@dataclasses.dataclass(frozen=True)
class PictureKind:
    """How answers of a kind are shown.

    Attributes:
        wrong: The places of the wrong images, those first that should be seen first.
        show: The picture of one and what is said of it, from the answers, its place, and what `thumbnail` returns, or
            None if the image cannot be shown.
        note: What the lines and the order of pictures mean.
        below: What follows the pictures of a task, from its label and its answers; None, nothing.
    """

    wrong: Callable[[Answers], list[int]]
    show: Callable[[Answers, int, Markup | None], Markup]
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
        note: What their lines mean.
        below: What follows them.
    """

    wrong: int | None
    figures: list[Markup]
    sentences: list[str]
    note: str = ""
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
    shown = wrong[:most]
    places, trouble = (
        _places(answers, subject, [answers.images[place] for place in shown], data_dir) if shown else ({}, "")
    )
    if trouble:
        sentences.append(f"The images themselves are not shown: {trouble} Give the command where the run was started.")
    figures, lost, full = [], 0, False
    for place in shown:
        picture = None
        if not trouble:
            picture = _picture(answers, place, places)
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
    return Gallery(len(wrong), figures, sentences, kind.note, below)


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


def _picture(answers: Answers, place: int, places: dict[str, tuple[Source, int]]) -> Markup | None:
    """Returns the thumbnail of an image, None if it is not there as it was."""
    if answers.images[place] not in places:
        return None
    source, index = places[answers.images[place]]
    if stored_size(source, index) != answers.sizes[place]:
        return None
    try:
        return thumbnail(source.read(index)[..., :3], _alternative(answers, place))
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
    data = base64.b64encode(stream.getvalue()).decode()
    source = f"data:image/{'png' if tiny else 'jpeg'};base64,{data}"
    size = {"width": image.width, "height": image.height}
    return element("img", src=source, alt=alternative, class_="tiny" if tiny else None, **size)


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


def _alternative(answers: Answers, place: int) -> str:
    return f"Image {answers.images[place]} of the {answers.split} split"


# ---------------------------------------------------------------------------------------------------------------- class


def _wrong_classes(answers: Answers) -> list[int]:
    """Returns the images of another class than the answer, the surest answers first."""
    pairs = zip(answers.columns["truth"], answers.columns["answer"], strict=True)
    wrong = [place for place, (truth, answer) in enumerate(pairs) if truth != answer]
    return sorted(wrong, key=lambda place: -answers.columns["probability"][place])


def _class_figure(answers: Answers, place: int, picture: Markup | None) -> Markup:
    names, columns = answers.class_names, answers.columns

    def line(mark: str, told: str, name: str, probability: float) -> Markup:
        return joined(
            element("span", mark, class_=told, aria_hidden="true"),
            element("span", "answer " if told == "wrong" else "truth ", class_="only-read"),
            element("b", name),
            f" {100 * probability:.0f} %",
        )

    answer, truth = columns["answer"][place], columns["truth"][place]
    lines = [
        line("✗", "wrong", names[answer], columns["probability"][place]),
        line("✓", "right", names[truth], columns["truth_probability"][place]),
    ]
    return figure(picture, lines, answers.images[place])


def confusions(answers: Answers) -> Iterator[tuple[str, str, int]]:
    """Yields class, answer and number of the wrong images of a pair, the most frequent first."""
    counts: dict[tuple[int, int], int] = {}
    for pair in zip(answers.columns["truth"], answers.columns["answer"], strict=True):
        if pair[0] != pair[1]:
            counts[pair] = counts.get(pair, 0) + 1
    for (truth, answer), count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        yield answers.class_names[truth], answers.class_names[answer], count


def errors_by_class(answers: Answers) -> list[tuple[str, int, int]]:
    """Returns the name, the images and the wrong ones of each class that has images."""
    images, wrong = ([0] * len(answers.class_names) for _ in range(2))
    for truth, answer in zip(answers.columns["truth"], answers.columns["answer"], strict=True):
        images[truth] += 1
        wrong[truth] += truth != answer
    return [row for row in zip(answers.class_names, images, wrong, strict=True) if row[1]]


def _class_tables(label: str, answers: Answers) -> Markup | None:
    """Returns which classes are taken for which, and the errors of each class; nothing if all answers are right."""
    pairs = list(confusions(answers))
    if not pairs:
        return None
    rows = [[truth, answer, f"{count:,}"] for truth, answer, count in pairs[:_PAIRS]]
    few = f"The {_PAIRS} most frequent of {len(pairs):,} pairs" if len(pairs) > _PAIRS else "All pairs"
    classes = []
    for name, images, wrong in errors_by_class(answers):
        low, high = wilson_interval(wrong, images)
        classes.append([name, f"{images:,}", f"{wrong:,}", f"{100 * wrong / images:.2f} [{low:.2f}, {high:.2f}]"])
    return element(
        "details",
        element("summary", "Errors by class"),
        element(
            "div",
            table(f"{few} of class and answer, {label}", ["class", "taken for", "images"], rows, left=2),
            table(
                f"Errors of each class, {label}, with 95 % intervals",
                ["class", "images", "wrong", "error %"],
                classes,
            ),
            class_="tables",
        ),
    )


PICTURES.register("class")(
    PictureKind(
        _wrong_classes,
        _class_figure,
        "✗ is the answer and ✓ the truth, each with the probability that the task gives it. The surest wrong answers "
        "come first.",
        _class_tables,
    )
)
