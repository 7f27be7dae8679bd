"""The average precision of boxes while a training runs: what pycocotools gives, but for scores that hardly differ."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.problems.points import area

# Thresholds of intersection over union, recalls, and how finely scores are told apart.
_OVERLAPS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_BINS = 2048


class BoxPrecisionError(keras.metrics.Metric):
    """1 less the AP of COCO, in pixels of the prepared images; scores within 1/2048 of one another count as equal.

    The figures of validation and test images are those of `pycocotools` (`box_measures.py`), which does not round, and
    judges images as they are in their source.

    Args:
        classes: Number of classes.
        answered: From logits to what was found, float32 `[B, K, 6]`, the surest first; see `Detection.predicted`.
    """

    def __init__(self, classes: int, answered: Callable[[tf.Tensor], tf.Tensor]):
        super().__init__(name="error")
        self._classes, self._answered = classes, answered
        # By class, threshold and score, the highest first: boxes that are right, and all but those that are ignored.
        self.found = self.add_variable((classes, len(_OVERLAPS), _BINS, 2), "zeros", name="found")
        self.there = self.add_variable((classes,), "zeros", name="there")

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        found, truth = self._answered(y_pred), tf.cast(y_true, tf.float32)
        weights = tf.ones([tf.shape(truth)[0]]) if sample_weight is None else tf.reshape(sample_weight, [-1])
        judged = judge(found, truth)
        classes = tf.cast(found[..., 4], tf.int32)
        bins = tf.cast((1.0 - found[..., 5]) * _BINS, tf.int32)
        bins = tf.clip_by_value(bins, 0, _BINS - 1)
        shape = tf.shape(judged)[:3]
        places = tf.stack(
            [
                tf.broadcast_to(tf.maximum(classes, 0)[:, :, None], shape),
                tf.broadcast_to(tf.range(len(_OVERLAPS))[None, None], shape),
                tf.broadcast_to(bins[:, :, None], shape),
            ],
            axis=-1,
        )
        counts = judged * tf.where(classes >= 0, weights[:, None], 0.0)[:, :, None, None]
        self.found.assign_add(tf.scatter_nd(places, counts, self.found.shape))
        counted = tf.where(truth[..., 5] > 0.5, 0.0, weights[:, None])
        wanted = tf.one_hot(tf.cast(truth[..., 4], tf.int32), self._classes)
        self.there.assign_add(tf.reduce_sum(wanted * counted[..., None], [0, 1]))

    def result(self) -> tf.Tensor:
        hits, boxes = tf.unstack(tf.cumsum(self.found.value, axis=2), axis=-1)
        recall = tf.math.divide_no_nan(hits, self.there.value[:, None, None])
        precision = _largest_from(tf.math.divide_no_nan(hits, boxes))
        flat = tf.reshape(recall, [-1, _BINS])
        wanted = tf.broadcast_to(tf.constant(_RECALLS, tf.float32), [flat.shape[0], len(_RECALLS)])
        # Rounding must not take the last of the recalls out of reach.
        places = tf.searchsorted(flat + 1e-6, wanted)
        reached = tf.concat([tf.reshape(precision, [-1, _BINS]), tf.zeros([flat.shape[0], 1])], axis=1)
        by_class = tf.reduce_mean(tf.reshape(tf.gather(reached, places, batch_dims=1), [self._classes, -1]), axis=1)
        occur = tf.cast(self.there.value > 0, tf.float32)
        return 1.0 - tf.math.divide_no_nan(tf.reduce_sum(by_class * occur), tf.reduce_sum(occur))


def judge(found: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """Returns whether boxes are right, and whether they count at all, by threshold: float32 `[B, K, T, 2]`, 0 or 1.

    As COCO does it: the surest box chooses first, each the box of its class that it overlaps most of those that nobody
    has, if it overlaps that enough. One that finds none and lies in a box that is to be ignored does not count.

    Args:
        found: float32 `[B, K, 6]`, the surest first.
        truth: float32 `[B, N, 6]`.
    """
    boxes, others = found[:, :, None, :4], truth[:, None, :, :4]
    common = area(
        tf.concat([tf.maximum(boxes[..., :2], others[..., :2]), tf.minimum(boxes[..., 2:], others[..., 2:])], -1)
    )
    same = found[:, :, None, 4] == truth[:, None, :, 4]
    ignored = truth[:, None, :, 5] > 0.5
    iou = tf.math.divide_no_nan(common, area(boxes) + area(others) - common)
    iou = tf.where(same & ~ignored, iou, 0.0)
    inside = tf.where(same & ignored, tf.math.divide_no_nan(common, area(boxes)), 0.0)
    overlaps = tf.constant(_OVERLAPS, tf.float32)
    passed_over = tf.reduce_max(inside, axis=2)[:, :, None] >= overlaps
    count, batch = tf.shape(found)[1], tf.shape(found)[0]

    def choose(place: tf.Tensor, free: tf.Tensor, hits: tf.TensorArray) -> tuple[tf.Tensor, tf.Tensor, tf.TensorArray]:
        own = tf.where(free, iou[:, place, None], 0.0)
        best, far = tf.argmax(own, axis=-1), tf.reduce_max(own, axis=-1) >= overlaps
        taken = tf.one_hot(best, tf.shape(truth)[1], True, False, dtype=tf.bool) & far[..., None]
        return place + 1, free & ~taken, hits.write(place, far)

    free = tf.ones([batch, len(_OVERLAPS), tf.shape(truth)[1]], tf.bool)
    hits = tf.TensorArray(tf.bool, count, element_shape=[None, len(_OVERLAPS)])
    _, _, hits = tf.while_loop(lambda place, *_: place < count, choose, [0, free, hits], parallel_iterations=1)
    right = tf.transpose(hits.stack(), [1, 0, 2])
    return tf.cast(tf.stack([right, right | ~passed_over], axis=-1), tf.float32)


def _largest_from(values: tf.Tensor) -> tf.Tensor:
    """Returns at each place the largest of the values from there to the end of the last axis, `_BINS` long."""
    step = 1
    while step < _BINS:
        later = tf.pad(values[..., step:], [*[[0, 0]] * (len(values.shape) - 1), [0, step]])
        values, step = tf.maximum(values, later), 2 * step
    return values
