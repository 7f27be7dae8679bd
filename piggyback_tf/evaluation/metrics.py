"""Top-1 and top-5 error in percent, with 95 % intervals."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from piggyback_tf.top_k import top_k_hits

# The 97.5 % quantile of the normal distribution, for two-sided 95 % intervals.
_Z = 1.959963984540054
_TOP_K = (1, 5)


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


def wilson_interval(misses: int, images: int) -> tuple[float, float]:
    """Returns the 95 % score interval of an error rate in percent (Wilson, JASA 22, 1927).

    With `p = misses / images`, `n = images` and `z = 1.96` (the 97.5 % quantile of the normal distribution):

        (p + z^2 / 2n -+ z * sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

    It stays within [0, 100] and does not shrink to a point when there are no errors.

    Raises:
        ValueError: If not `0 <= misses <= images`, or there are no images.
    """
    if not 0 <= misses <= images or images == 0:
        raise ValueError(f"An interval needs 0 <= misses <= images, images > 0. Received: {misses} of {images}.")
    rate, z2 = misses / images, _Z * _Z
    centre = rate + z2 / (2 * images)
    half = _Z * math.sqrt(rate * (1 - rate) / images + z2 / (4 * images * images))
    scale = 100.0 / (1 + z2 / images)
    # At the ends the formula is exact, and its floating point value is not.
    low = 0.0 if misses == 0 else scale * (centre - half)
    high = 100.0 if misses == images else scale * (centre + half)
    return low, high


def evaluate(predict: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> dict[str, float | int]:
    """Measures the errors of a network.

    Args:
        predict: From a batch of images to probabilities or logits `[B, C]`.
        batches: Pairs of images and integer labels `[B]`; gone through once.

    Returns:
        `"top1_error"` in percent with the ends of its 95 % Wilson interval `"top1_error_low"` and
        `"top1_error_high"`; the same for `"top5_error"` if there are more than five classes; and the number of
        `"images"`.

    Raises:
        ValueError: If there are no images, or labels and scores do not fit together.
    """
    images, classes = 0, None
    misses = dict.fromkeys(_TOP_K, 0)
    for batch, labels in batches:
        labels, scores = np.asarray(labels), np.asarray(predict(batch))
        for k in _TOP_K:
            misses[k] += int((~top_k_hits(labels, scores, k)).sum())
        images += len(labels)
        classes = scores.shape[1]
    if not images:
        raise ValueError("There are no images to measure an error on.")
    result: dict[str, float | int] = {}
    for k in _TOP_K:
        if k < classes:
            name = f"top{k}_error"
            result[name] = 100.0 * misses[k] / images
            result[f"{name}_low"], result[f"{name}_high"] = wilson_interval(misses[k], images)
    return result | {"images": images}
