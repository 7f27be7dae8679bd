"""Points and boxes: which points of a feature map answer for which boxes, and how wrong their answers are.

Boxes are `ymin, xmin, ymax, xmax` in pixels: continuous, from the corner of the image, whose first pixel goes from 0 to
1. A row of a target is such a box, the number of its class, -1 in rows without a box, and 1 if it is to be ignored.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# A point answers for a box if it is so many strides or less from its middle ("FCOS: a simple and strong anchor-free
# object detector", Tian et al., PAMI 2020, section 2.3).
RADIUS = 1.5
# Of the focal loss (Lin et al., ICCV 2017).
ALPHA, GAMMA = 0.25, 2.0


class Assigned(NamedTuple):
    """What points are to answer.

    Attributes:
        classes: 1 for the class of the box that the point answers for, float32 `[B, P, C]`.
        counts: 0 where the class is not asked about, since the point is in an ignored box of it; float32 `[B, P, C]`.
        boxes: That box, float32 `[B, P, 4]`; any box where there is none.
        positive: 1 if there is one, float32 `[B, P]`.
    """

    classes: tf.Tensor
    counts: tf.Tensor
    boxes: tf.Tensor
    positive: tf.Tensor


def point_centres(size: tuple[int, int], stride: tuple[float, float]) -> np.ndarray:
    """Returns the points of a feature map, float32 `[P, 2]`: y and x of the middles of its places, row by row.

    Args:
        size: Its height and width.
        stride: Pixels from a place to the next, in both directions.
    """
    y, x = ((np.arange(side) + 0.5) * step for side, step in zip(size, stride, strict=True))
    return np.stack(np.meshgrid(y, x, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def assign(targets: tf.Tensor, points: np.ndarray, stride: tuple[float, float], classes: int) -> Assigned:
    """Returns which points answer for which boxes.

    A point answers for a box if it is in it and near its middle; the point nearest to the middle always does. Of
    several boxes it answers for the smallest, and of equally small ones for the first. Ignored boxes get none. Where a
    point in such a box has no box of that class to answer for, it is not asked about the class.

    Args:
        targets: float32 `[B, N, 6]`.
        points: float32 `[P, 2]`.
        stride: As of `point_centres`.
        classes: Number of classes.
    """
    boxes, numbers = targets[..., :4], tf.cast(targets[..., 4], tf.int32)
    there, ignored = numbers >= 0, targets[..., 5] > 0.5
    # All by point and box, [B, P, N].
    y, x = points[None, :, None, 0], points[None, :, None, 1]
    top, left, bottom, right = (side[:, None] for side in tf.unstack(boxes, axis=-1))
    inside = (y > top) & (y < bottom) & (x > left) & (x < right)
    far_y, far_x = tf.abs(y - (top + bottom) / 2) / stride[0], tf.abs(x - (left + right) / 2) / stride[1]
    far = tf.maximum(far_y, far_x)
    chosen = (inside & (far <= RADIUS)) | _first_smallest(far)
    chosen &= (there & ~ignored)[:, None]
    area = tf.where(chosen, (bottom - top) * (right - left), tf.fill([], float("inf")))
    own = tf.argmin(area, axis=-1, output_type=tf.int32)
    positive = tf.cast(tf.reduce_any(chosen, axis=-1), tf.float32)
    found = tf.one_hot(tf.gather(numbers, own, batch_dims=1), classes) * positive[..., None]
    passed_over = tf.cast(inside & (there & ignored)[:, None], tf.float32)
    passed_over = tf.matmul(passed_over, tf.one_hot(numbers, classes)) > 0
    counts = tf.cast(~passed_over | (found > 0), tf.float32)
    return Assigned(found, counts, tf.gather(boxes, own, batch_dims=1), positive)


def _first_smallest(values: tf.Tensor) -> tf.Tensor:
    """Returns for `[B, P, N]` where the first of the smallest values along P is."""
    return tf.one_hot(tf.argmin(values, axis=1), tf.shape(values)[1], True, False, axis=1, dtype=tf.bool)


def focal_loss(logits: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Returns the focal loss of each logit: `-a (1 - p)^g log(p)` of the probability `p` of what is true.

    Args:
        logits: float32.
        truth: 1 or 0, float32 of the same shape.
    """
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(truth, logits)
    weight = truth * ALPHA + (1 - truth) * (1 - ALPHA)
    return weight * tf.pow(tf.abs(truth - tf.sigmoid(logits)), GAMMA) * cross_entropy


def giou(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns the generalised intersection over union of boxes (Rezatofighi et al., CVPR 2019), in [-1, 1].

    Args:
        a: float32 `[..., 4]`.
        b: float32 `[..., 4]`.
    """
    common = area(tf.concat([tf.maximum(a[..., :2], b[..., :2]), tf.minimum(a[..., 2:], b[..., 2:])], -1))
    hull = area(tf.concat([tf.minimum(a[..., :2], b[..., :2]), tf.maximum(a[..., 2:], b[..., 2:])], -1))
    union = area(a) + area(b) - common
    return tf.math.divide_no_nan(common, union) - tf.math.divide_no_nan(hull - union, hull)


def area(boxes: tf.Tensor) -> tf.Tensor:
    """Returns the areas of boxes `[..., 4]`, 0 of those whose ends are before their starts."""
    sides = tf.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)
    return sides[..., 0] * sides[..., 1]
