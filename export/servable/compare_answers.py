"""Compares a written SavedModel with the task bank on a task that finds something else than the class of an image.

What is a whole number, such as the class of a pixel, is the same or not; a few may differ where two classes are equal
but for rounding. Of boxes each has a counterpart or not; see `shared/same_boxes.py`.
"""

import dataclasses
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from piggyback_tf.data import Operation, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations, geometry_back
from piggyback_tf.packs import TaskBank
from piggyback_tf.problems import PNG, PROBLEMS, AnswerSpec, Problem, WayBack

from ..shared.same_boxes import PIXELS, strange_boxes
from .compare import ENCODED_SUFFIXES, LIMIT, timed, told_of_files
from .problem_signatures import signature_for

# The share of whole numbers, and of boxes, that may differ.
SHARE = 1e-4


@dataclasses.dataclass(frozen=True)
class AnswersComparison:
    """An export and the bank on one task.

    Attributes:
        task: The task's name.
        answer: Name of what the bank answers.
        prepared: With prepared images, the share of whole numbers or of boxes that differ, or the largest difference of
            others.
        files: The same with image files, against the answers to prepared images; None if no file was answered.
        whole: Whether the answer is made of whole numbers, or of boxes, of which a share is told.
        refused: How many JPEG and PNG files the export flags.
        export_ms: Milliseconds an image of the export, prepared images in batches.
        bank_ms: The same of the bank.
    """

    task: str
    answer: str
    prepared: float
    files: float | None
    whole: bool
    refused: int
    export_ms: float
    bank_ms: float

    @property
    def good(self) -> bool:
        """Whether the export answers as the bank does, and to some file if there were any that it should take."""
        limit = SHARE if self.whole else LIMIT
        return max(self.prepared, self.files or 0.0) <= limit and (self.files is not None or not self.refused)

    @property
    def text(self) -> str:
        """What is told of it, on one line."""
        files = told_of_files(None if self.files is None else self._shown(self.files), self.refused)
        return (
            f"{self.task}: {self.answer}: {self._shown(self.prepared)} with pixels, {files}; "
            f"{self.export_ms:.1f} ms an image (bank {self.bank_ms:.1f})"
        )

    def _shown(self, value: float) -> str:
        return f"{100 * value:.4f} % differ" if self.whole else f"largest difference {value:.1e}"


class _Differences:
    """Adds up how answers differ."""

    def __init__(self, whole: bool):
        self._whole, self._count, self._differ, self._largest = whole, 0, 0, 0.0

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        if found.shape != expected.shape:  # All of it is wrong.
            self._count, self._differ, self._largest = self._count + 1, self._differ + 1, np.inf
            return
        self._count, self._differ = self._count + expected.size, self._differ + int((found != expected).sum())
        if not self._whole:
            self._largest = max(self._largest, float(np.abs(found - expected).max(initial=0)))

    def add_boxes(self, found: np.ndarray, expected: np.ndarray, pixels: float = PIXELS) -> None:
        """Adds boxes of images, as the bank answers, `[B, n, 6]`; an image without any counts as one."""
        for own, other in zip(found, expected, strict=True):
            strange, count = strange_boxes(own, other, pixels)
            self._count, self._differ = self._count + max(count, 1), self._differ + strange

    @property
    def found(self) -> float | None:
        if not self._count:
            return None
        return self._differ / self._count if self._whole else self._largest


def compare_answers(
    model: Any, bank: TaskBank, task: str, files: Sequence[Path], batch_size: int = 32
) -> AnswersComparison:
    """Compares the answers of an export to images with those of the bank.

    Args:
        model: The loaded export.
        bank: A bank with the task.
        task: The task's name.
        files: Image files, at least one.
        batch_size: Images of a call.

    Raises:
        DataError: If a file is no image, or cannot be prepared for the task.
    """
    info = bank.info(task)
    shape = info["image_shape"] or (bank.backbone.image_size,) * 2
    problem, operations = PROBLEMS[info["problem"]](info["class_names"], shape), parse_augment(info["eval_augment"])
    by_images = model.signatures[signature_for(info["problem"], shape)]
    by_files = model.signatures[problem.signature]
    name, spec = next(iter(problem.answers.items()))
    whole = problem.answers_boxes or not tf.as_dtype(spec.dtype).is_floating
    prepared, from_files, refused = _Differences(whole), _Differences(whole), 0
    seconds: dict[str, list[float]] = {"export": [], "bank": []}
    for start in range(0, len(files), batch_size):
        part = list(files[start : start + batch_size])
        data = [path.read_bytes() for path in part]
        originals = [decode_image(content, str(path)) for content, path in zip(data, part, strict=True)]
        images = np.stack([apply_operations(operations, original) for original in originals])
        expected = timed(seconds["bank"], functools.partial(bank.predict, images, task=task, batch_size=batch_size))
        dtype = by_images.structured_input_signature[1]["images"].dtype
        ask = functools.partial(by_images, images=tf.constant(images, dtype), task=tf.constant([task] * len(images)))
        answers = timed(seconds["export"], ask)
        if problem.answers_boxes:
            prepared.add_boxes(problem.predicted(answers).numpy(), expected)
        else:
            prepared.add(_as_wide_as(answers[name].numpy(), expected, spec), expected)
        chosen = [index for index, path in enumerate(part) if path.suffix.lower() in ENCODED_SUFFIXES]
        if not chosen:
            continue
        found = by_files(image_bytes=tf.constant([data[i] for i in chosen]), task=tf.constant([task] * len(chosen)))
        for row, index in enumerate(chosen):
            if not found["image_ok"].numpy()[row]:
                refused += 1
                continue
            way = _way_back(operations, originals[index].shape[:2])
            own = problem.file_answer({key: answers[key][index] for key in problem.answers}, way)
            if problem.answers_boxes:
                # A pixel of the prepared image may be several of the file.
                pixels = PIXELS * max(1.0, 1 / float(np.min(way.scale)))
                of_file, wanted = (
                    problem.predicted(each).numpy()[None] for each in ({key: found[key][row] for key in own}, own)
                )
                from_files.add_boxes(of_file, wanted, pixels)
                continue
            for key, value in own.items():
                from_files.add(*(_numbers(problem, key, each) for each in (found[key][row], value)))
    times = {key: 1e3 * float(np.sum(values)) / len(files) for key, values in seconds.items()}
    difference = prepared.found
    assert difference is not None, "there is at least one image"
    return AnswersComparison(task, name, difference, from_files.found, whole, refused, times["export"], times["bank"])


def _as_wide_as(found: np.ndarray, expected: np.ndarray, spec: AnswerSpec) -> np.ndarray:
    """Returns answers without what is behind the last class of the task, if there is nothing."""
    inside = found[tuple(map(slice, expected.shape))]
    behind = found.size - inside.size
    return inside if np.count_nonzero(found == spec.missing) >= behind else found


def _numbers(problem: Problem, name: str, value: tf.Tensor) -> np.ndarray:
    """Returns what a file answer holds."""
    found = value.numpy()
    if problem.file_answers[name].dtype != PNG:
        return np.asarray(found)
    with Image.open(io.BytesIO(found)) as image:
        return np.asarray(image)


def _way_back(operations: Sequence[Operation], size: tuple[int, int]) -> WayBack:
    """Returns where the pixels of an image are in the prepared one, by the operations themselves."""
    geometry, _ = geometry_back(operations, size)
    scale, offset = np.diag(geometry), geometry[:, 2]
    return WayBack(*(tf.constant(part) for part in (np.array(size, np.int32), scale, offset)))
