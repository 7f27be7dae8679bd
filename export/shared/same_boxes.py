"""Whether two answers of boxes are the same but for rounding, which may decide which of two boxes is kept."""

import numpy as np

from piggyback_tf.data import NO_BOX
from piggyback_tf.problems.box_measures import MOST
from piggyback_tf.problems.detection import LEAST_SCORE, OVERLAP

# How much the sides of a box, in pixels, and its score may differ before the choice among boxes.
PIXELS, SCORE = 0.01, 1e-5
# Whoever compares numbers that are this close may find either to be the larger one.
NEAR = 1e-4
# Two boxes within so many pixels are not two of which one is kept, but one that is not where it should be.
MOVED = 1.0


def box_overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of boxes, float64 `[n, m]`.

    Args:
        boxes: ymin, xmin, ymax and xmax, `[n, 4]`.
        others: The same, `[m, 4]`.
    """
    first, second = (np.asarray(each, np.float64) for each in (boxes, others))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0), axis=-1)
    areas = [np.prod(np.maximum(each[:, 2:] - each[:, :2], 0), axis=-1) for each in (first, second)]
    union = areas[0][:, None] + areas[1][None] - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def boxes_in(answer: np.ndarray) -> np.ndarray:
    """Returns the boxes of an image, `[n, 6]`, of what `TaskBank.predict` returns for it."""
    return answer[answer[:, 4] != NO_BOX]


def strange_boxes(
    found: np.ndarray, expected: np.ndarray, pixels: float = PIXELS, score: float = SCORE
) -> tuple[int, int]:
    """Returns how many boxes of two answers to an image are only in one of them, without rounding being the reason.

    Rounding may be the reason where a comparison was close, to `NEAR`: that of a score with the least one or with the
    last of `MOST` boxes, that of an overlap with the largest one, or that of the scores of two boxes of which one is
    kept. What is kept decides about others: a box is excused, too, if the other answer has one in its place that is.

    Args:
        found: Boxes of one answer, `[n, 6]`, as `TaskBank.predict` has them.
        expected: Those of the other one, `[m, 6]`.
        pixels: By how much the sides of a box may differ in both.
        score: By how much its scores may.

    Returns:
        That number, and how many boxes there are in both together.
    """
    sides = boxes_in(found).astype(np.float64), boxes_in(expected).astype(np.float64)
    alone = _alone(sides[0], sides[1], pixels, score)
    excused: list[list[np.ndarray]] = [[], []]
    # The surest first: only what is surer, or as sure, decides about a box.
    order = sorted(((side, row) for side in (0, 1) for row in alone[side]), key=lambda at: -sides[at[0]][at[1], 5])
    strange = 0
    for side, row in order:
        box, others = sides[side][row], sides[1 - side]
        last = others[:, 5].min() if len(others) >= MOST else LEAST_SCORE
        rivals = others[(others[:, 4] == box[4]) & (others[:, 5] >= box[5] - NEAR)]
        shared = box_overlaps(box[None, :4], rivals[:, :4])[0]
        other = np.abs(rivals[:, :4] - box[:4]).max(axis=1) > MOVED
        tied = other & (shared > OVERLAP - NEAR) & (np.abs(rivals[:, 5] - box[5]) <= NEAR)
        known = [any(np.array_equal(rival, one) for one in excused[1 - side]) for rival in rivals]
        good = box[5] <= last + NEAR or (np.abs(shared - OVERLAP) <= NEAR).any() or tied.any()
        if good or ((shared > OVERLAP - NEAR) & np.array(known, bool)).any():
            excused[side].append(box)
        else:
            strange += 1
    return strange, len(sides[0]) + len(sides[1])


def _alone(first: np.ndarray, second: np.ndarray, pixels: float, score: float) -> tuple[list[int], list[int]]:
    """Returns the rows of two lists of boxes that have no counterpart in the other one; each is one box's alone."""
    free, alone = set(range(len(second))), []
    for row, box in enumerate(first):
        far = np.abs(second[:, :4] - box[:4]).max(axis=1)
        near = (far <= pixels) & (np.abs(second[:, 5] - box[5]) <= score) & (second[:, 4] == box[4])
        partner = next((int(at) for at in np.flatnonzero(near)[np.argsort(far[near])] if int(at) in free), None)
        if partner is None:
            alone.append(row)
        else:
            free.discard(partner)
    return alone, sorted(free)
