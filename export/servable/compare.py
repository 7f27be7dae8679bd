"""Compares a written SavedModel with the task bank, on one task at a time; `export/verify.py` prints it."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from piggyback_tf.data import parse_augment
from piggyback_tf.packs import TaskBank

from ..shared.prepare_image import prepare_image

LIMIT = 1e-5
# Of files that exports decode.
ENCODED_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """An export and the bank on one task.

    Attributes:
        task: The task's name.
        pixels: The largest difference of a probability, with images as pixels.
        files: The largest difference of a score, with images as files; None if no JPEG or PNG was answered.
        labels: Whether all labels were those of the bank.
        refused: How many JPEG and PNG files the export flags, such as those with a wide colour profile.
        export_ms: Milliseconds an image of the export, pixels in batches.
        bank_ms: The same of the bank.
    """

    task: str
    pixels: float
    files: float | None
    labels: bool
    refused: int
    export_ms: float
    bank_ms: float

    @property
    def good(self) -> bool:
        """Whether the export answers as the bank does, and to some file if there were any that it should take."""
        answered = self.files is not None or not self.refused
        return max(self.pixels, self.files or 0.0) <= LIMIT and self.labels and answered

    @property
    def text(self) -> str:
        """What is told of it, on one line."""
        files = told_of_files(None if self.files is None else f"{self.files:.1e}", self.refused)
        return (
            f"{self.task}: largest difference {self.pixels:.1e} with pixels, {files}; labels "
            f"{'equal' if self.labels else 'NOT equal'}; {self.export_ms:.1f} ms an image (bank {self.bank_ms:.1f})"
        )


def told_of_files(difference: str | None, refused: int) -> str:
    """Returns what is told of images as files.

    Args:
        difference: How their answers differ from the bank's; None if none was answered.
        refused: How many the export flags.
    """
    found = "no JPEG or PNG" if difference is None else f"{difference} with files"
    return f"{found} ({refused} refused)" if refused else found


def compare(model: Any, bank: TaskBank, task: str, files: Sequence[Path], batch_size: int = 32) -> Comparison:
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
    by_name, encoded = model.signatures["by_name"], model.signatures["encoded"]
    dtype = by_name.structured_input_signature[1]["images"].dtype
    k = encoded.structured_outputs["scores"].shape[1]
    pixels, scores, labels, refused = 0.0, None, True, 0
    seconds, operations = {"export": [], "bank": []}, parse_augment(bank.info(task)["eval_augment"])
    for start in range(0, len(files), batch_size):
        part = list(files[start : start + batch_size])
        data = [path.read_bytes() for path in part]
        pairs = zip(data, part, strict=True)
        images = np.stack([prepare_image(content, str(path), operations) for content, path in pairs])
        expected = timed(seconds["bank"], functools.partial(bank.predict, images, task=task, batch_size=batch_size))
        inputs = tf.constant(images, dtype), tf.constant([task] * len(images))
        found = timed(seconds["export"], functools.partial(by_name, images=inputs[0], task=inputs[1]))["probabilities"]
        width = expected.shape[1]
        # Columns behind the task's classes are 0.
        found = found.numpy()
        pixels = max(pixels, float(np.abs(found[:, :width] - expected).max()), float(found[:, width:].max(initial=0)))
        chosen = [index for index, path in enumerate(part) if path.suffix.lower() in ENCODED_SUFFIXES]
        if chosen:
            answer = encoded(image_bytes=tf.constant([data[i] for i in chosen]), task=tf.constant([task] * len(chosen)))
            answer = {name: value.numpy() for name, value in answer.items()}
            answered = np.flatnonzero(answer["image_ok"])
            refused += len(chosen) - len(answered)
            if not len(answered):
                continue
            best = bank.top_k(images[chosen][answered], task=task, k=k, batch_size=batch_size)
            difference, same = _compare_best(answer["labels"][answered], answer["scores"][answered], best)
            scores, labels = max(scores or 0.0, difference), labels and same
    times = {name: 1e3 * float(np.sum(values)) / len(files) for name, values in seconds.items()}
    return Comparison(task, pixels, scores, labels, refused, times["export"], times["bank"])


def timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    """Calls twice and notes the time of the second call: the first of a kind plans the graph."""
    call()
    started = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - started)
    return result


def _compare_best(labels: np.ndarray, scores: np.ndarray, best: list[list[tuple[str, float]]]) -> tuple[float, bool]:
    """Returns the largest difference of scores, and whether labels agree but for the order of equal scores."""
    difference, same = 0.0, True
    for names, found, row in zip(labels, scores, best, strict=True):
        expected = np.array([score for _, score in row])
        difference = max(difference, float(np.abs(found[: len(row)] - expected).max()))
        by_label = dict(row)
        for label, score in zip(names[: len(row)], found, strict=False):
            # Two classes within the limit of one another may come in either order, or the last may be left out.
            near = np.abs(expected - score).min() <= LIMIT
            same &= abs(by_label.get(label.decode(), expected[-1]) - score) <= LIMIT and bool(near)
        same &= not any(names[len(row) :])
    return difference, same
