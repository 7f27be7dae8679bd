"""What is noted of the answers to single images, by what is to be found in them."""

from typing import Any

import numpy as np

from piggyback_tf.evaluation.answers import ANSWERS, AnswerBatch, AnswerKind, Answers, Columns, demand

# So many wrong classes of an image are noted.
_WRONG = 10


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
        surest = np.argsort(-np.abs(found - true), kind="stable")
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


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _rounded(values: np.ndarray) -> list[float]:
    # A hundredth of a percent is more than anybody reads, and compresses well.
    # Of logits that overflowed it is not known.
    return [round(float(value), 4) for value in np.clip(np.nan_to_num(values), 0.0, 1.0)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
