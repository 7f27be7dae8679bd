"""Which images have their class among the first answers; NumPy alone, so that reading results needs no Keras."""

import numpy as np


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
