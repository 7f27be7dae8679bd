"""Boxes of objects in images: all of a data set in one table, and what becomes of them when their image is prepared.

A box is six numbers: ymin, xmin, ymax and xmax in pixels, the number of its class, and 1 if it is to be ignored, as
what COCO calls a crowd and PASCAL VOC difficult. The corner of the image is at 0 and its end at its height and width,
so that the first pixel is the box 0, 0, 1, 1.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from piggyback_tf.data.augment import Operation, Size, steps_of
from piggyback_tf.data.geometry import move_boxes
from piggyback_tf.data.images import BrokenImageError

# The columns of a box.
COLUMNS = 6
# The class of a row that holds no box.
NO_BOX = -1
# A box is ignored if less of its area is in the image, or if it is lower or narrower in pixels.
LEAST_LEFT, LEAST_SIDE = 0.25, 1.0
# So far a box may reach beyond its image, in pixels: as much as rounding and counting from 0 or 1 make.
TOLERANCE = 1.0
# So many faults of one image are told in full.
_TOLD = 3


class BoxError(BrokenImageError):
    """Boxes that do not go together with their image."""

    def __init__(self, message: str):
        super().__init__(message, "boxes")


@dataclasses.dataclass(frozen=True, eq=False)
class BoxTable:
    """The boxes of all images of a source, as they are there.

    Attributes:
        rows: One box behind another, float32 `[M, 6]`.
        ends: Where the boxes of each image end in `rows`, int64 `[N]`.
        sizes: `(height, width)` of each image, int32 `[N, 2]`.
        most: How many boxes an image has at most, at least 1; of all splits of a data set.
    """

    rows: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    most: int

    @classmethod
    def of_images(cls, boxes: Sequence[np.ndarray], sizes: Sequence[Size], most: int | None = None) -> "BoxTable":
        """Returns the table of some images.

        Args:
            boxes: Those of each image, `[n, 6]`.
            sizes: `(height, width)` of each image.
            most: As of the table; by default what these images need.
        """
        rows = np.concatenate([np.zeros([0, COLUMNS]), *(np.reshape(own, [-1, COLUMNS]) for own in boxes)])
        ends = np.cumsum([len(own) for own in boxes], dtype=np.int64)
        most = most or max([1, *(len(own) for own in boxes)])
        return cls(rows.astype(np.float32), ends, np.array(sizes, np.int32).reshape(-1, 2), most)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def counts(self) -> np.ndarray:
        """How many boxes each image has, int64 `[N]`."""
        return np.diff(self.ends, prepend=0)

    def of(self, index: int) -> np.ndarray:
        """Returns the boxes of an image, float32 `[n, 6]`."""
        first = int(self.ends[index - 1]) if index else 0
        return self.rows[first : int(self.ends[index])]

    def size(self, index: int) -> Size:
        """Returns `(height, width)` of an image."""
        return int(self.sizes[index, 0]), int(self.sizes[index, 1])

    def take(self, indices: np.ndarray) -> "BoxTable":
        """Returns the table of some of the images, in this order."""
        counts = self.counts[indices]
        firsts, ends = self.ends[indices] - counts, np.cumsum(counts)
        places = np.arange(int(counts.sum())) + np.repeat(firsts - (ends - counts), counts)
        return BoxTable(self.rows[places], ends, self.sizes[indices], self.most)

    def renumbered(self, numbers: np.ndarray) -> "BoxTable":
        """Returns the same boxes with other numbers of their classes, given by the old ones."""
        rows = self.rows.copy()
        rows[:, 4] = np.asarray(numbers)[rows[:, 4].astype(np.int64)]
        return dataclasses.replace(self, rows=rows)

    def by_class(self, classes: int) -> np.ndarray:
        """Returns which classes each image has boxes of, int32 `[N, classes]`, 0 or 1."""
        found = np.zeros([len(self), classes], np.int32)
        found[np.repeat(np.arange(len(self)), self.counts), self.rows[:, 4].astype(np.int64)] = 1
        return found

    def tobytes(self) -> bytes:
        """Returns all that is in the table."""
        return b"".join(part.tobytes() for part in (np.array([len(self), self.most]), self.rows, self.ends, self.sizes))

    def check_size(self, index: int, image: np.ndarray, name: str) -> None:
        """Raises a `BoxError` if an image has not the size that its boxes are for."""
        if tuple(image.shape[:2]) != self.size(index):
            height, width = self.size(index)
            raise BoxError(
                f"The boxes of image {name!r} are for a height of {height} and a width of {width}, but it is "
                f"{image.shape[0]} high and {image.shape[1]} wide, shown upright."
            )


class PreparedBoxes:
    """The boxes of a table, moved as their images are prepared.

    Args:
        table: The boxes.
        operations: The operations that are the same in every epoch, which come first.
    """

    def __init__(self, table: BoxTable, operations: Sequence[Operation]):
        self._table, self._operations = table, list(operations)
        # Most data sets have few sizes.
        self._steps = functools.lru_cache(maxsize=1024)(functools.partial(steps_of, self._operations))

    def batch(
        self, indices: Iterable[int], moves: np.ndarray | None = None, sizes: np.ndarray | None = None
    ) -> np.ndarray:
        """Returns the boxes of some images, float32 `[B, most, 6]`; see `targets_of`.

        Args:
            indices: The images.
            moves: The geometries of what else was done to each, `[B, S, 2, 3]`.
            sizes: `(height, width)` after each of these steps, `[B, S, 2]`.
        """
        found = []
        for place, index in enumerate(indices):
            steps = [self._steps(self._table.size(int(index)))]
            if moves is not None and sizes is not None:
                steps.append((moves[place], sizes[place]))
            all_moves, all_sizes = (np.concatenate(parts) for parts in zip(*steps, strict=True))
            table = self._table
            found.append(targets_of(table.of(int(index)), all_moves, all_sizes, table.size(int(index)), table.most))
        return np.stack(found)


def targets_of(boxes: np.ndarray, moves: np.ndarray, sizes: np.ndarray, before: Size, most: int) -> np.ndarray:
    """Returns the boxes of an image as a network is to find them, in pixels of the prepared image.

    A box that left the image is gone. One of which less than `LEAST_LEFT` of its area is there, or whose height or
    width is below `LEAST_SIDE`, is there to be ignored: nobody could tell what it is, and it is no background either.
    Every other box is cut to the image.

    Args:
        boxes: Those of the image, `[n, 6]`, as they are in its source.
        moves: The geometry of each step that the image went through, `[S, 2, 3]`.
        sizes: `(height, width)` after each step, `[S, 2]`.
        before: `(height, width)` of the image in the source.
        most: Rows of the result.

    Returns:
        float32 `[most, 6]`; rows behind the boxes have `NO_BOX` for a class, and zeros.
    """
    found, left = move_boxes(boxes[:, :4], moves, sizes, before)
    there = left > 0
    too_small = (left < LEAST_LEFT) | ((found[:, 2:] - found[:, :2]).min(axis=1, initial=np.inf) < LEAST_SIDE)
    targets = np.zeros([most, COLUMNS], np.float32)
    targets[:, 4] = NO_BOX
    rows = np.concatenate([found, boxes[:, 4:5], np.maximum(boxes[:, 5:], too_small[:, None])], axis=1)[there]
    targets[: len(rows)] = rows
    return targets


def box_faults(names: Sequence[str], boxes: np.ndarray, size: Size) -> list[str]:
    """Returns what is wrong with the boxes of an image, a part of a sentence for each that cannot be used.

    Args:
        names: What each is called, such as `"object 3 ('dog')"`.
        boxes: `[n, 4]`: ymin, xmin, ymax and xmax.
        size: `(height, width)` of the image.
    """
    faults = []
    for name, edges in zip(names, boxes, strict=True):
        top, left, bottom, right = (float(edge) for edge in edges)
        if not np.isfinite(edges).all():
            faults.append(f"{name} has a number that is not finite")
        elif bottom <= top or right <= left:
            faults.append(f"{name} is {bottom - top:g} high and {right - left:g} wide")
        elif min(top, left) < -TOLERANCE or bottom > size[0] + TOLERANCE or right > size[1] + TOLERANCE:
            faults.append(
                f"{name} reaches from {top:g} to {bottom:g} down and from {left:g} to {right:g} across, outside of the "
                f"image, which is {size[0]} high and {size[1]} wide"
            )
        elif min(bottom, size[0]) <= max(top, 0) or min(right, size[1]) <= max(left, 0):
            faults.append(f"{name} lies outside of the image, which is {size[0]} high and {size[1]} wide")
    return faults


def some_faults(faults: Sequence[str]) -> str:
    """Returns the faults of one image as a part of a sentence."""
    more = f"; and {len(faults) - _TOLD} more" if len(faults) > _TOLD else ""
    return "; ".join(faults[:_TOLD]) + more
