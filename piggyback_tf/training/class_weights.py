"""How much each class weighs in the loss: by how rare it is in the training images."""

import json
from pathlib import Path

import numpy as np
from absl import logging

from piggyback_tf.data import Source
from piggyback_tf.file_names import WEIGHTS_FILE
from piggyback_tf.files import write_atomically
from piggyback_tf.problems import Problem
from piggyback_tf.training.run_folder import damaged


def median_frequency(frequencies: np.ndarray) -> np.ndarray:
    """Returns what classes weigh, float64 `[K]` (Eigen and Fergus, ICCV 2015, section 6.3.2).

    With `freq_c`, the pixels of class c as a part of those of all images that have one of it, class c weighs
    `median(freq) / freq_c`. Pixels of no class are left out. A class that is in no image weighs 0, since no pixel asks
    for it, and is no part of the median.

    Args:
        frequencies: The pixels of each class in each image, int64 `[N, K]`.
    """
    pixels, there = frequencies.sum(axis=0), frequencies > 0
    around = (there * frequencies.sum(axis=1, keepdims=True)).sum(axis=0)
    part = np.divide(pixels, around, out=np.zeros(len(pixels)), where=pixels > 0)
    if not pixels.any():
        return np.zeros(len(pixels))
    return np.divide(np.median(part[pixels > 0]), part, out=np.zeros(len(pixels)), where=pixels > 0)


def class_weights(kind: str, problem: Problem, images: Source, folder: Path | None) -> dict[str, float]:
    """Returns what each class weighs in the loss of a task, by name; nothing if all weigh the same.

    It is computed once, from the label maps as their files have them, and kept in the folder of the training.

    Args:
        kind: One of `CLASS_WEIGHTS`.
        problem: What is to be found in the images.
        images: Those that are trained on.
        folder: Where the training keeps its state; None keeps nothing.

    Raises:
        TrainingError: If the file in the folder is damaged.
        DataError: If an image cannot be read.
    """
    if kind == "none" or not problem.weighs_classes:
        return {}
    file = folder / WEIGHTS_FILE if folder else None
    if file is not None and file.exists():
        return _read(file, problem)
    logging.info("Counting the pixels of each class in %d label maps.", len(images))
    weights = median_frequency(np.stack([problem.frequencies(images.read(index)) for index in range(len(images))]))
    # Rounded, so that those who compute and those who read have the same.
    found = {name: float(f"{weight:.6g}") for name, weight in zip(problem.class_names, weights.tolist(), strict=True)}
    if file is not None:
        write_atomically(file, json.dumps(found, indent=2) + "\n")
    return found


def _read(file: Path, problem: Problem) -> dict[str, float]:
    try:
        found = json.loads(file.read_text())
        if list(found) != list(problem.class_names) or not all(type(w) is float and w >= 0 for w in found.values()):
            raise ValueError("it has not a weight for each class")
    except (OSError, ValueError, TypeError) as error:
        raise damaged(file, error) from error
    return found
