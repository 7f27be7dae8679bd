"""Errors of networks: how often their answers are wrong, and how certain that is."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from piggyback_tf.top_k import top_k_errors, top_k_hits, top_k_misses


def top_k_error(labels: np.ndarray, scores: np.ndarray, k: int = 1) -> float:
    """Returns the percentage of images whose class is not among the `k` with the highest scores.

    Args:
        labels: Integer array `[N]`, not empty.
        scores: Array `[N, C]` of probabilities or logits.
        k: How many guesses a network has.

    Raises:
        ValueError: As `top_k_hits`, and if there are no images.
    """
    hits = top_k_hits(labels, scores, k)
    if not hits.size:
        raise ValueError("There are no images to measure an error on.")
    return 100.0 * (hits.size - int(hits.sum())) / hits.size


def evaluate(predict: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> dict[str, float | int]:
    """Measures the errors of a network that finds the class of an image.

    Args:
        predict: From a batch of images to probabilities or logits `[B, C]`.
        batches: Pairs of images and integer labels `[B]`; gone through once.

    Returns:
        What `top_k_errors` returns.

    Raises:
        ValueError: If there are no images, or labels and scores do not fit together.
    """
    misses, classes = [np.zeros([0, 2], bool)], 0
    for batch, labels in batches:
        scores = np.asarray(predict(batch))
        misses.append(top_k_misses(np.asarray(labels), scores))
        classes = scores.shape[1]
    return top_k_errors(np.concatenate(misses), classes)
