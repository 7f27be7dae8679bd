"""Pictures with painted rectangles, in which anybody can see where a box belongs."""

import numpy as np

from piggyback_tf.data.boxes import BoxTable
from piggyback_tf.data.sources import Source


def paint(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a black picture in which the boxes of class 0 are red, of 1 green, and of 2 blue."""
    image = np.zeros((*size, 3), np.uint8)
    for top, left, bottom, right, number, _ in np.asarray(boxes, int):
        image[top:bottom, left:right, number] = 255
    return image


class Painted(Source):
    """Painted pictures.

    Args:
        boxes: The boxes of each picture, `[n, 6]`, at whole pixels.
        sizes: The size of each.
    """

    has_boxes = True

    def __init__(self, boxes, sizes):
        self._boxes = BoxTable.of_images([np.array(own, np.float32).reshape(-1, 6) for own in boxes], sizes)

    @property
    def labels(self):
        return self._boxes.by_class(3)

    @property
    def boxes(self):
        return self._boxes

    def read(self, index):
        return paint(self._boxes.of(index), self._boxes.size(index))

    def describe(self, index):
        return f"painted {index}"

    def key(self, index):
        return str(index)

    def fingerprint(self):
        return self._boxes.tobytes().hex()


def seen(channel: np.ndarray) -> tuple[float, float, float, float]:
    """Returns the box that is painted in one channel, to a part of a pixel.

    Resizing spreads what is painted over pixels beside, and neither its middle nor its amount changes by that.
    """
    edges = []
    for axis in (0, 1):
        profile = channel.astype(float).max(axis=1 - axis) / 255
        middle = ((np.arange(len(profile)) + 0.5) * profile).sum() / profile.sum()
        edges.append((middle - profile.sum() / 2, middle + profile.sum() / 2))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right
