"""Errors that are means of a measure over classes, with their intervals, and such a measure."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from piggyback_tf.top_k import best_classes

_DRAWS = 1000
# So many draws are in memory at once.
_PART = 100


def measured_by_class(
    name: str,
    measure: Callable[[np.ndarray], np.ndarray],
    images: int,
    class_names: Sequence[str],
    draws: int = _DRAWS,
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """Returns what `Problem.measured` tells of an error that is 100 % less the mean of a measure over classes.

    A class that does not occur is no part of the mean; if none occurs, the error is 100 %. The interval is the middle
    95 % of what images drawn with replacement give (percentile bootstrap, draws of a fixed seed); it takes images to be
    independent, which those of one video are not.

    Args:
        name: The error's name.
        measure: From how often each image counts, integers `[D, N]`, to the measure of each class, fractions `[D, C]`
            of float64, NaN for a class that does not occur.
        images: How many images there are, `N`.
        class_names: The classes.
        draws: How often images are drawn, a multiple of 100.

    Returns:
        The error with the ends of its interval and `"images"`, and the measure of each class in percent, None for one
        that does not occur.

    Raises:
        ValueError: If there are no images.
    """
    if not images:
        raise ValueError("There are no images to measure an error on.")
    rng, even = np.random.default_rng(0), np.full(images, 1 / images)
    (by_class,) = measure(np.ones([1, images], np.int64))
    drawn = [measure(rng.multinomial(images, even, _PART)) for _ in range(draws // _PART)]
    low, high = np.percentile([_mean_error(row) for part in drawn for row in part], [2.5, 97.5])
    errors = {name: _mean_error(by_class), f"{name}_low": float(low), f"{name}_high": float(high), "images": images}
    values = zip(class_names, by_class.tolist(), strict=True)
    return errors, {one: None if np.isnan(value) else 100.0 * value for one, value in values}


def average_precision(scores: np.ndarray, truth: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Returns the average precision of each class, as of scikit-learn: nothing is interpolated.

    With precision `P_n` and recall `R_n` of the images down to the n-th of the different scores, the highest first:

        sum over n of (R_n - R_(n-1)) P_n

    Args:
        scores: `[N, C]`, the higher, the surer that an image is of a class.
        truth: Whether it is, 0 or 1, `[N, C]`.
        times: How often each image counts, `[D, N]`.

    Returns:
        float64 `[D, C]`, NaN for a class that no image is of.
    """
    found = np.full([len(times), scores.shape[1]], np.nan)
    for place in range(scores.shape[1]):
        order = best_classes(scores[:, place], len(scores))
        # Images of equal scores count together, at the last of them.
        last = np.flatnonzero(np.diff(scores[order, place], append=-np.inf))
        images = np.cumsum(times[:, order], axis=1, dtype=np.float64)[:, last]
        hits = np.cumsum(times[:, order] * truth[order, place], axis=1, dtype=np.float64)[:, last]
        precision = np.divide(hits, images, out=np.zeros_like(hits), where=images > 0)
        gained = (np.diff(hits, axis=1, prepend=0) * precision).sum(axis=1)
        np.divide(gained, hits[:, -1], out=found[:, place], where=hits[:, -1] > 0)
    return found


def _mean_error(by_class: np.ndarray) -> float:
    return 100.0 if np.isnan(by_class).all() else 100.0 * (1.0 - float(np.nanmean(by_class)))
