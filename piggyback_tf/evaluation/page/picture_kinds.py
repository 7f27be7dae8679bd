"""How wrong images and their answers are shown, by what is to be found in them."""

from collections.abc import Callable, Iterator

import numpy as np

from piggyback_tf.evaluation.answer_kinds import in_order
from piggyback_tf.evaluation.answers import Answers
from piggyback_tf.evaluation.box_pictures import BELIEVED, with_boxes
from piggyback_tf.evaluation.page.markup import Markup, element, joined, table
from piggyback_tf.evaluation.page.pictures import PICTURES, PictureKind, alternative_text, figure, png, thumbnail
from piggyback_tf.evaluation.segment_pictures import (
    map_of_text,
    overlay,
    small_image,
    small_map,
    small_size,
    swatch_png,
)
from piggyback_tf.evaluation.text import MEASURE_TITLES
from piggyback_tf.top_k import wilson_interval

# Pairs of classes that are listed.
_PAIRS = 10


# ---------------------------------------------------------------------------------------------------------------- class


def _wrong_classes(answers: Answers) -> list[int]:
    """Returns the images of another class than the answer, the surest answers first."""
    pairs = zip(answers.columns["truth"], answers.columns["answer"], strict=True)
    wrong = [place for place, (truth, answer) in enumerate(pairs) if truth != answer]
    return sorted(wrong, key=lambda place: -answers.columns["probability"][place])


def _line(true: bool, name: str, probability: float) -> Markup:
    """Returns a class with its probability: one that the image is of, or one that was answered and is wrong."""
    return joined(
        element("span", "✓" if true else "✗", class_="right" if true else "wrong", aria_hidden="true"),
        element("span", "truth " if true else "answer ", class_="only-read"),
        element("b", name),
        f" {100 * probability:.0f} %",
    )


def _class_figure(answers: Answers, place: int, picture: Markup | None) -> Markup:
    names, columns = answers.class_names, answers.columns

    answer, truth = columns["answer"][place], columns["truth"][place]
    lines = [
        _line(False, names[answer], columns["probability"][place]),
        _line(True, names[truth], columns["truth_probability"][place]),
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
        note="✗ is the answer and ✓ the truth, each with the probability that the task gives it. The surest wrong "
        "answers come first.",
        below=_class_tables,
    )
)


# ----------------------------------------------------------------------------------------------------------- multilabel


def _wrong_several(answers: Answers) -> list[int]:
    """Returns the images with a wrong answer for any class, the surest answers first."""
    truth, wrong = answers.columns["truth"], answers.columns["wrong"]

    def off(place: int) -> float:
        number, probability = wrong[place][0]
        return abs(probability - (number in truth[place]))

    return sorted((place for place, pairs in enumerate(wrong) if pairs), key=lambda place: -off(place))


def _several_figure(answers: Answers, place: int, picture: Markup | None) -> Markup:
    names, truth = answers.class_names, answers.columns["truth"][place]
    lines = [_line(one in truth, names[one], probability) for one, probability in answers.columns["wrong"][place]]
    return figure(picture, lines, answers.images[place])


def measures_by_class(name: str, *, first_colour: int | None = None) -> Callable[[str, Answers], Markup | None]:
    """Returns what makes a table of a measure of each class out of the errors that were measured with answers.

    Args:
        name: The measure, as results call it.
        first_colour: The number of the first class's colour in the pictures; None if they have none.
    """
    title = MEASURE_TITLES[name]

    def below(label: str, answers: Answers) -> Markup | None:
        found = answers.errors.get(name)
        if not isinstance(found, dict):
            return None
        rows = []
        for number, (one, value) in enumerate(found.items()):
            has_colour = first_colour is not None and first_colour + number < 256
            colour = png(swatch_png((first_colour or 0) + number), "", class_="swatch") if has_colour else None
            # The file may be anybody's.
            told = f"{value:.2f}" if type(value) in (int, float) else "-"
            rows.append([joined(colour, one), told])
        body = table(f"{title} of each class, {label}", ["class", title], rows)
        return element("details", element("summary", f"{title} by class"), body, open=first_colour is not None)

    return below


PICTURES.register("multilabel")(
    PictureKind(
        _wrong_several,
        _several_figure,
        note="Where an image can be of several classes, ✗ is one that was answered and is wrong, and ✓ one that was "
        "missed, each with the probability that the task gives it.",
        below=measures_by_class("average_precision"),
    )
)


# ------------------------------------------------------------------------------------------------------------------ map


def _wrong_segments(answers: Answers) -> list[int]:
    """Returns the images that are not right in every pixel, the worst first."""
    iou = answers.columns["iou"]
    return [place for place in in_order(iou) if iou[place] < 1]


def _draw_segments(answers: Answers, place: int, pixels: np.ndarray) -> Markup:
    """Returns an image, its label map, and what was answered, if that is known."""
    size, name = small_size(pixels.shape[:2]), alternative_text(answers, place)
    image, truth = small_image(pixels[..., :3], size), small_map(pixels[..., 3], size)
    shown = [thumbnail(image, name), thumbnail(overlay(image, truth), f"{name}: truth")]
    try:
        answer = map_of_text(answers.columns["answer"][place] or "")
        shown.append(thumbnail(overlay(image, small_map(answer, size)), f"{name}: answer"))
    except ValueError:
        shown.append(element("span", "no answer"))
    return joined(shown)


def _segment_figure(answers: Answers, place: int, picture: Markup | None) -> Markup:
    return figure(picture, [f"IoU {100 * answers.columns['iou'][place]:.0f} %"], answers.images[place])


PICTURES.register("map")(
    PictureKind(
        _wrong_segments,
        _segment_figure,
        _draw_segments,
        wide=True,
        both_ends=True,
        told="not right in every pixel",
        note="Of tasks of pixels each picture is the image, the truth over it, and the answer over it; the worst come "
        "first, and the last are the best. IoU is the mean over the classes in the image and in its answer.",
        below=measures_by_class("iou", first_colour=0),
    )
)


# ---------------------------------------------------------------------------------------------------------------- boxes


def _mistakes(answers: Answers, place: int) -> tuple[int, int]:
    """Returns how many boxes of an image were missed, and how many found where there is none."""
    return answers.columns["missed"][place], sum(row[6] == 0 for row in answers.columns["found"][place])


def _wrong_boxes(answers: Answers) -> list[int]:
    """Returns the images with a mistake, those with most first."""
    counts = [sum(_mistakes(answers, place)) for place in range(len(answers.images))]
    return sorted((place for place, count in enumerate(counts) if count), key=lambda place: -counts[place])


def _draw_boxes(answers: Answers, place: int, pixels: np.ndarray) -> Markup:
    """Returns an image with the boxes that are there, and with those that were found."""
    size, name = small_size(pixels.shape[:2]), alternative_text(answers, place)
    image, scale = small_image(pixels[..., :3], size), np.array([*size] * 2) / [*pixels.shape[:2], *pixels.shape[:2]]
    shown = []
    for kind, told in (("truth", "truth"), ("found", "answer")):
        rows = answers.columns[kind][place]
        edges = np.array([row[1:5] for row in rows], np.float64).reshape(-1, 4) * scale
        shown.append(thumbnail(with_boxes(image, edges, [row[0] for row in rows]), f"{name}: {told}"))
    return joined(shown)


def _box_figure(answers: Answers, place: int, picture: Markup | None) -> Markup:
    missed, added = _mistakes(answers, place)
    return figure(picture, [f"{missed} missed, {added} wrong"], answers.images[place])


PICTURES.register("boxes")(
    PictureKind(
        _wrong_boxes,
        _box_figure,
        _draw_boxes,
        wide=True,
        told="with a box that was missed or is wrong",
        note="Of tasks of boxes each picture is the image with the boxes that are there, and with those that were "
        f"found with a score of {BELIEVED} or more. Right is one that covers the same as a box of its class that no "
        "surer one has: half of what both cover. The images with most mistakes come first.",
        below=measures_by_class("ap", first_colour=1),
    )
)
