"""What a matrix of classes and answers says of each class; NumPy alone, so that reading results needs no Keras."""

import numpy as np


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class, NaN for one that neither occurs nor is answered.

    Args:
        confusion: Pixels by class (row) and answer (column), `[..., K, K]`.

    Returns:
        float64 `[..., K]`.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    union = confusion.sum(axis=-2) + confusion.sum(axis=-1) - hits
    return np.divide(hits, union, out=np.full(hits.shape, np.nan), where=union > 0)
