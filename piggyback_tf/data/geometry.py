"""Where the pixels of an image go: what moves an image moves its label map and its boxes alike.

Coordinates are (y, x) with the corner of the image at 0 and its end at its height and width, so that the middle of the
first pixel is (0.5, 0.5). A geometry is a matrix `[2, 3]` that takes a point `(y, x, 1)` of the result to the point of
the image that it comes from.
"""

import numpy as np

# A pixel of a label map that belongs to no class: the loss and the measures leave it out.
VOID = 255
IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def scaling(size: tuple[float, float], result: tuple[float, float]) -> np.ndarray:
    """Returns the geometry of a resize from `(height, width)` to another."""
    return np.array([[size[0] / result[0], 0.0, 0.0], [0.0, size[1] / result[1], 0.0]])


def offset(top: float, left: float) -> np.ndarray:
    """Returns the geometry of a crop that begins at a place."""
    return np.array([[1.0, 0.0, top], [0.0, 1.0, left]])


def composed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the geometry of one step after another; both may be tensors."""
    linear = first[:, :2]
    moved = linear @ second[:, 2:] + first[:, 2:]
    if isinstance(moved, np.ndarray):
        return np.concatenate([linear @ second[:, :2], moved], axis=1)
    import tensorflow as tf

    return tf.concat([linear @ second[:, :2], moved], axis=1)


def inverted(geometry: np.ndarray) -> np.ndarray:
    """Returns the geometry of the way back."""
    linear = np.linalg.inv(geometry[:, :2])
    return np.concatenate([linear, -linear @ geometry[:, 2:]], axis=1)


def warp_map(labels: np.ndarray, geometry: np.ndarray, size: tuple[int, int], *, nearest: bool = False) -> np.ndarray:
    """Returns a label map as it is after a step: each pixel has the label of the pixel that its middle comes from.

    Args:
        labels: uint8 `(height, width)`.
        geometry: The step.
        size: `(height, width)` of the result.
        nearest: Whether a pixel that comes from outside has the nearest label inside, and not `VOID`.

    Returns:
        uint8 of that size.
    """
    height, width = (int(side) for side in size)
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    rows = np.floor(geometry[0, 0] * y + geometry[0, 1] * x + geometry[0, 2]).astype(np.int64)
    columns = np.floor(geometry[1, 0] * y + geometry[1, 1] * x + geometry[1, 2]).astype(np.int64)
    inside = (rows >= 0) & (rows < labels.shape[0]) & (columns >= 0) & (columns < labels.shape[1])
    found = labels[np.clip(rows, 0, labels.shape[0] - 1), np.clip(columns, 0, labels.shape[1] - 1)]
    if nearest:
        return found
    return np.where(inside, found, np.uint8(VOID))
