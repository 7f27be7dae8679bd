"""What is noted of the answers to single images, by what is to be found in them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from piggyback_tf.confusion import intersection_over_union
from piggyback_tf.data import at_own_size
from piggyback_tf.evaluation.answers import ANSWERS, AnswerBatch, AnswerKind, Answers, Columns, demand
from piggyback_tf.evaluation.box_pictures import BELIEVED
from piggyback_tf.evaluation.segment_pictures import map_to_text, small_map, small_size
from piggyback_tf.top_k import best_classes

# So many wrong classes of an image are noted, and so many of the worst and of the best answers for pixels.
_WRONG, _ENDS = 10, 500
# No image has as many pixels in a row.
_FARTHEST = 1e6


# ---------------------------------------------------------------------------------------------------------------- class


def note_classes(batch: AnswerBatch) -> Columns:
    """Returns the class of each image, the most probable answer, and how probable both are."""
    scores = np.asarray(batch.scores, np.float64)
    probabilities = scores if batch.probabilities else _softmax(scores)
    labels, rows = np.asarray(batch.targets, np.int64), np.arange(len(batch.targets))
    best = np.argmax(probabilities, axis=1)
    return {
        "truth": labels.tolist(),
        "answer": best.tolist(),
        "probability": _rounded(probabilities[rows, best]),
        "truth_probability": _rounded(probabilities[rows, labels]),
    }


def check_classes(answers: Answers) -> None:
    """Raises an error if columns are not those of `note_classes`."""
    classes, columns = range(len(answers.class_names)), answers.columns
    for name in ("truth", "answer"):
        demand(all(type(v) is int and v in classes for v in columns[name]), f"{name}: one is none of its classes")
    for name in ("probability", "truth_probability"):
        demand(all(map(_is_share, columns[name])), f"{name}: one is none")


ANSWERS.register("class")(AnswerKind(note_classes, check_classes))


# ----------------------------------------------------------------------------------------------------------- multilabel


def note_several_classes(batch: AnswerBatch) -> Columns:
    """Returns the classes of each image, and those with a wrong answer, which is yes from a half on.

    Wrong ones have their probability, the surest come first.
    """
    scores, truth = np.asarray(batch.scores, np.float64), np.asarray(batch.targets)
    probabilities = scores if batch.probabilities else 1 / (1 + np.exp(-scores))
    wrong = []
    for found, true in zip(probabilities, truth.astype(bool), strict=True):
        surest = best_classes(np.abs(found - true), len(found))
        places = [int(place) for place in surest if (found[place] >= 0.5) != true[place]][:_WRONG]
        wrong.append([list(pair) for pair in zip(places, _rounded(found[places]), strict=True)])
    return {"truth": [np.flatnonzero(row).tolist() for row in truth], "wrong": wrong}


def check_several_classes(answers: Answers) -> None:
    """Raises an error if columns are not those of `note_several_classes`."""
    classes = range(len(answers.class_names))
    named = [*answers.columns["truth"], *([place for place, _ in row] for row in answers.columns["wrong"])]
    demand(all(type(v) is int and v in classes for row in named for v in row), "one is none of its classes")
    demand(all(_is_share(p) for row in answers.columns["wrong"] for _, p in row), "wrong: one has no probability")


ANSWERS.register("multilabel")(AnswerKind(note_several_classes, check_several_classes))


# ------------------------------------------------------------------------------------------------------------------ map


def note_segments(batch: AnswerBatch) -> Columns:
    """Returns of each image the mean IoU over the classes in it and in its answer, None without any, and the answer.

    The answer is a label map for the image as it is in the source, with as many pixels as a page shows.
    """
    assert batch.counts is not None, "segments are counted before they are noted"
    maps = np.asarray(batch.scores)
    maps = maps if maps.ndim == 3 else maps.argmax(axis=-1).astype(np.uint8)
    found: Columns = {"iou": [], "answer": []}
    for labels, counts, original in zip(maps, batch.counts, batch.originals, strict=True):
        by_class = intersection_over_union(counts)
        known = by_class[~np.isnan(by_class)]
        found["iou"].append(_rounded(known.mean(keepdims=True))[0] if len(known) else None)
        answer = small_map(at_own_size(labels, batch.operations, original.size), small_size(original.size))
        found["answer"].append(map_to_text(answer))
    return found


def only_ends(columns: Columns) -> Columns:
    """Returns the same with answers of the worst and the best images alone, which are those that a page can show."""
    order = in_order(columns["iou"])
    kept = {*order[:_ENDS], *order[-_ENDS:]}
    return {**columns, "answer": [text if place in kept else None for place, text in enumerate(columns["answer"])]}


def in_order(iou: Sequence[float | None]) -> list[int]:
    """Returns the places of images whose IoU is known, the worst first."""
    return sorted((place for place, value in enumerate(iou) if value is not None), key=lambda place: iou[place] or 0.0)


def check_segments(answers: Answers) -> None:
    """Raises an error if columns are not those of `note_segments`."""
    demand(all(value is None or _is_share(value) for value in answers.columns["iou"]), "iou: one is none")
    demand(all(text is None or isinstance(text, str) for text in answers.columns["answer"]), "answer: one is none")


ANSWERS.register("map")(AnswerKind(note_segments, check_segments, only_ends))


# ---------------------------------------------------------------------------------------------------------------- boxes


def note_boxes(batch: AnswerBatch) -> Columns:
    """Returns the boxes of each image that are there and that were found, in its pixels, and which are mistakes.

    Of those found, only such with a score that is believed. A row of `"truth"` is class, ymin, xmin, ymax, xmax, and
    whether it is to be ignored; one of `"found"` has the score, and whether it is right: 1, 0, or -1 if it does not
    count. `"missed"` is how many were not found.
    """
    assert batch.counts is not None, "boxes are counted before they are noted"
    columns: Columns = {"truth": [], "found": [], "missed": []}
    for own in batch.counts:
        truth = [[int(row[4]), *_edges(row), int(row[5])] for row in own.truth]
        believed = own.found[:, 5] >= BELIEVED
        columns["truth"].append(truth)
        columns["found"].append(
            [
                [int(row[4]), *_edges(row), *_rounded(row[5:]), int(right)]
                for row, right in zip(own.found[believed], own.right[believed], strict=True)
            ]
        )
        columns["missed"].append(int((own.truth[:, 5] == 0).sum() - (own.right[believed] == 1).sum()))
    return columns


def check_boxes(answers: Answers) -> None:
    """Raises an error if columns are not those of `note_boxes`."""
    classes = range(len(answers.class_names))
    for row in (row for rows in (*answers.columns["truth"], *answers.columns["found"]) for row in rows):
        number, *edges = row[:5]
        demand(type(number) is int and number in classes and len(edges) == 4, "a box is of none of its classes")
        demand(all(type(edge) in (int, float) and abs(edge) < _FARTHEST for edge in edges), "a box is none")
        demand(edges[0] <= edges[2] and edges[1] <= edges[3], "a box ends before it begins")
    demand(
        all(len(row) == 6 and row[5] in (0, 1) for rows in answers.columns["truth"] for row in rows), "truth: no box"
    )
    for row in (row for rows in answers.columns["found"] for row in rows):
        demand(len(row) == 7 and _is_share(row[5]) and row[6] in (-1, 0, 1), "found: one is no box")
    demand(all(type(count) is int and count >= 0 for count in answers.columns["missed"]), "missed: one is no number")


def _edges(row: np.ndarray) -> list[float]:
    return [round(float(edge), 1) for edge in row[:4]]


ANSWERS.register("boxes")(AnswerKind(note_boxes, check_boxes))


# ---------------------------------------------------------------------------------------------------------------------


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _rounded(values: np.ndarray) -> list[float]:
    # A hundredth of a percent is more than anybody reads, and compresses well.
    # Of logits that overflowed it is not known.
    return [round(float(value), 4) for value in np.clip(np.nan_to_num(values), 0.0, 1.0)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
