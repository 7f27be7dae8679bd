"""Top-1 and top-5 errors in percent, with 95 % intervals; NumPy alone, so that reading results needs no Keras."""

import math

import numpy as np

# The 97.5 % quantile of the normal distribution, for two-sided 95 % intervals.
Z95 = 1.959963984540054
_TOP_K = (1, 5)


def top_k_hits(labels: np.ndarray, scores: np.ndarray, k: int) -> np.ndarray:
    """Returns for each image whether its class is among the `k` with the highest scores.

    Of equal scores the one of the class with the lower index counts as higher, as for `argmax`: a network that gives
    every class the same score has no hits for free.

    Args:
        labels: Integer array `[N]`.
        scores: Array `[N, C]` of probabilities or logits.
        k: How many guesses a network has.

    Returns:
        Boolean array `[N]`.

    Raises:
        ValueError: If the shapes do not fit, a label is no class, `k` is below 1, or a score is NaN.
    """
    labels, scores = np.asarray(labels), np.asarray(scores)
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"Labels must be [N] and scores [N, C]. Received: {list(labels.shape)}, {list(scores.shape)}.")
    if k < 1:
        raise ValueError(f"k must be at least 1. Received: {k}.")
    if labels.size and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
        raise ValueError(f"Labels must lie in [0, {scores.shape[1]}). Received: {labels.min()} to {labels.max()}.")
    if np.isnan(scores).any():
        raise ValueError("Scores must not be NaN.")
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)
    earlier = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & earlier)).sum(axis=1)
    return rank < k


def best_classes(scores: np.ndarray, k: int) -> np.ndarray:
    """Returns the classes with the highest scores, the highest first; of equal scores the lower index comes first.

    Args:
        scores: Array `[C]` of probabilities or logits.
        k: How many; all of them if there are fewer.

    Returns:
        Integer array `[min(k, C)]`.
    """
    return np.argsort(-scores, kind="stable")[:k]


def top_k_misses(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns for each image whether its class is not the first answer, and whether it is not among the first five.

    Args:
        labels: As of `top_k_hits`.
        scores: As of `top_k_hits`.

    Returns:
        Boolean `[N, 2]`.
    """
    return np.stack([~top_k_hits(labels, scores, k) for k in _TOP_K], axis=1)


def top_k_errors(misses: np.ndarray, classes: int) -> dict[str, float | int]:
    """Returns the errors of some images.

    Args:
        misses: What `top_k_misses` returned for them.
        classes: How many classes there are.

    Returns:
        `"top1_error"` in percent with the ends of its 95 % Wilson interval `"top1_error_low"` and
        `"top1_error_high"`; the same for `"top5_error"` if there are more than five classes; and the number of
        `"images"`.

    Raises:
        ValueError: If there are no images.
    """
    images, result = len(misses), {}
    if not images:
        raise ValueError("There are no images to measure an error on.")
    for k, count in zip(_TOP_K, misses.sum(axis=0), strict=True):
        if k < classes:
            name = f"top{k}_error"
            result[name] = 100.0 * int(count) / images
            result[f"{name}_low"], result[f"{name}_high"] = wilson_interval(int(count), images)
    return result | {"images": images}


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
    rate, z2 = misses / images, Z95 * Z95
    centre = rate + z2 / (2 * images)
    half = Z95 * math.sqrt(rate * (1 - rate) / images + z2 / (4 * images * images))
    scale = 100.0 / (1 + z2 / images)
    # At the ends the formula is exact, and its floating point value is not.
    low = 0.0 if misses == 0 else scale * (centre - half)
    high = 100.0 if misses == images else scale * (centre + half)
    return low, high
