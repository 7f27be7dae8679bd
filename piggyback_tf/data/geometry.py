"""Where the pixels of an image go: what moves an image moves its label map and its boxes alike.

Coordinates are (y, x) with the corner of the image at 0 and its end at its height and width, so that the middle of the
first pixel is (0.5, 0.5). A geometry is a matrix `[2, 3]` that takes a point `(y, x, 1)` of the result to the point of
the image that it comes from.
"""

from typing import Any

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
    """Returns the geometry of one step after another."""
    linear = first[:, :2]
    return np.concatenate([linear @ second[:, :2], linear @ second[:, 2:] + first[:, 2:]], axis=1)


def inverted(geometry: np.ndarray) -> np.ndarray:
    """Returns the geometry of the way back."""
    linear = np.linalg.inv(geometry[:, :2])
    return np.concatenate([linear, -linear @ geometry[:, 2:]], axis=1)


def warp_map(labels: np.ndarray, moves: np.ndarray, size: Any, *, nearest: bool = False) -> np.ndarray:
    """Returns a label map as it is after some steps: each pixel has the label of the pixel that its middle comes from.

    What a step cut off does not come back: a pixel that comes from outside of the image after any of the steps is of no
    class.

    Args:
        labels: Integers `[height, width]`.
        moves: The geometry of a step, `[2, 3]`, or of several, `[S, 2, 3]`.
        size: `(height, width)` after it, or after each of them, `[S, 2]`.
        nearest: Whether a pixel that comes from outside has the nearest label inside, and not `VOID`.

    Returns:
        A label map of the last size, of the same dtype.
    """
    moves, sizes = _steps(moves, size)
    height, width = (int(side) for side in sizes[-1])
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    inside: np.ndarray | bool = True
    # Back through the steps. Few cut off what a later one brings back into the picture; only those are looked at.
    so_far = IDENTITY
    for step in reversed(range(len(moves))):
        so_far = composed(moves[step].astype(np.float64), so_far)
        if step and not _all_inside(so_far, (height, width), sizes[step - 1]):
            rows, columns = _places(so_far, y, x)
            inside = inside & _within(rows, columns, sizes[step - 1])
    rows, columns = _places(so_far, y, x)
    found = labels[np.clip(rows, 0, labels.shape[0] - 1), np.clip(columns, 0, labels.shape[1] - 1)]
    if nearest:
        return found
    return np.where(inside & _within(rows, columns, labels.shape), found, labels.dtype.type(VOID))


def move_boxes(
    boxes: np.ndarray, moves: np.ndarray, sizes: Any, before: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes as they are after some steps, and which part of each is left.

    First, and after every step, a box is cut to the image; what was cut off does not come back. After a step it is the
    smallest upright box around its four corners. A box of which nothing is left is empty.

    Args:
        boxes: `[n, 4]`, each ymin, xmin, ymax and xmax in pixels of the image before.
        moves: The geometry of each step, `[S, 2, 3]`.
        sizes: `(height, width)` after each step, `[S, 2]`.
        before: `(height, width)` before the first.

    Returns:
        The boxes, float64 `[n, 4]`, and the shares of their areas, `[n]`, in [0, 1].
    """
    moves, sizes = _steps(moves, sizes)
    found, left = _cut(np.asarray(boxes, np.float64).reshape(-1, 4), before)
    for geometry, size in zip(moves, sizes, strict=True):
        back = inverted(geometry.astype(np.float64))
        corners = np.stack([found[:, [i, j, 1]] for i in (0, 2) for j in (1, 3)])
        corners[..., 2] = 1.0
        points = corners @ back.T
        found, part = _cut(np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1), size)
        left = left * part
    return found, left


def _steps(moves: Any, sizes: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(moves).reshape(-1, 2, 3), np.asarray(sizes).reshape(-1, 2)


def _places(geometry: np.ndarray, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row and the column of the pixel that each point comes from."""
    rows = np.floor(geometry[0, 0] * y + geometry[0, 1] * x + geometry[0, 2])
    columns = np.floor(geometry[1, 0] * y + geometry[1, 1] * x + geometry[1, 2])
    return rows.astype(np.int64), columns.astype(np.int64)


def _within(rows: np.ndarray, columns: np.ndarray, size: Any) -> np.ndarray:
    return (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])


def _all_inside(geometry: np.ndarray, size: tuple[int, int], other: Any) -> bool:
    """Returns whether all pixels of a size come from inside of another one; those at the corners do then."""
    y, x = np.array([[0.5], [size[0] - 0.5]]), np.array([[0.5, size[1] - 0.5]])
    return bool(_within(*_places(geometry, y, x), other).all())


def _cut(boxes: np.ndarray, size: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns boxes cut to an image, and the shares of their areas that are left."""
    limits = np.array([size[0], size[1], size[0], size[1]], np.float64)
    found = np.clip(boxes, 0.0, limits)
    whole, left = (np.prod(part[:, 2:] - part[:, :2], axis=1) for part in (boxes, found))
    return found, np.divide(left, whole, out=np.zeros_like(whole), where=whole > 0)
