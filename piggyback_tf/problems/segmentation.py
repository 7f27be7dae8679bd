"""Segments: each pixel of an image is of one class, or of none that counts."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.data.geometry import VOID
from piggyback_tf.problems.base import PROBLEMS, Problem
from piggyback_tf.problems.heads import HeadSpec
from piggyback_tf.settings.methods import MethodConfig


class MeanIoUError(keras.metrics.MeanIoU):
    """1 less the mean over the classes that occur of intersection over union; pixels of no class are left out.

    Args:
        num_classes: Number of classes.
        name: Name of the metric.
    """

    def __init__(self, num_classes: int, name: str = "error"):
        super().__init__(num_classes, name=name, ignore_class=VOID, sparse_y_pred=False)

    def result(self) -> tf.Tensor:
        return 1.0 - super().result()


class PixelCrossEntropy(keras.losses.Loss):
    """Cross-entropy of an image: the mean over its pixels that have a class, 0 if none has.

    So an image weighs the same however much of it has no class, and a batch is the mean of its images, on one device
    and on several.

    Args:
        reduction: As of Keras' losses.
        name: Name of the loss.
    """

    def __init__(self, reduction: str = "sum_over_batch_size", name: str = "cross_entropy"):
        super().__init__(name=name, reduction=reduction)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return pixel_cross_entropy(y_true, y_pred)


def pixel_cross_entropy(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns the cross-entropy of each image, float32 `[B]`; see `PixelCrossEntropy`.

    Args:
        labels: Label maps `[B, H, W]` with `VOID` for pixels of no class, of any type.
        logits: `[B, H, W, K]`.
    """
    labels = tf.cast(labels, tf.int32)
    known = labels != VOID
    found = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.where(known, labels, 0), tf.cast(logits, tf.float32))
    known = tf.cast(known, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(found * known, [1, 2]), tf.reduce_sum(known, [1, 2]))


@PROBLEMS.register("map")
class Segmentation(Problem):
    """Finds the class of each pixel; the error is 100 % less the mean intersection over union (Long et al., CVPR 2015).

    With `n_ij` pixels of class i that are taken for class j, and `t_i = sum_j n_ij`:

        mean IoU = mean over i of n_ii / (t_i + sum_j n_ji - n_ii)

    over the classes that occur in the images or in the answers.
    """

    score_name = "mean IoU"

    def head(self, config: MethodConfig) -> HeadSpec:
        del config
        return HeadSpec("fpn", len(self.class_names), 32, self.image_shape)

    def loss(self, reduction: str) -> keras.losses.Loss:
        return PixelCrossEntropy(reduction)

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `"labels"`, uint8 `[B, H, W]`: the most probable class of each pixel, of equal ones the first."""
        return {"labels": tf.cast(tf.argmax(logits, axis=-1), tf.uint8)}

    def metrics(self) -> list[keras.metrics.Metric]:
        cross_entropy = keras.metrics.MeanMetricWrapper(pixel_cross_entropy, name="cross_entropy")
        return [MeanIoUError(len(self.class_names)), cross_entropy]

    def count(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the confusion matrix of each image, `[B, K, K]`: rows are classes, columns answers."""
        logits, targets = np.asarray(logits), np.asarray(targets)
        classes = len(self.class_names)
        if logits.shape != (*targets.shape, classes):
            raise ValueError(
                f"Logits of {classes} classes must be [B, H, W, {classes}], and label maps [B, H, W]. Received: "
                f"{list(logits.shape)}, {list(targets.shape)}."
            )
        strange = targets[(targets != VOID) & (targets >= classes)]
        if strange.size:
            raise ValueError(f"Label maps must hold classes below {classes}, or {VOID}. Received: {strange[0]}.")
        if np.isnan(logits).any():
            raise ValueError("Logits must not be NaN.")
        found, counts = logits.argmax(axis=-1), []
        for truth, answer in zip(targets, found, strict=True):
            known = truth != VOID
            pairs = truth[known].astype(np.int64) * classes + answer[known]
            counts.append(np.bincount(pairs, minlength=classes * classes).reshape(classes, classes))
        return np.stack(counts)

    def error(self, counts: np.ndarray) -> float:
        return 100.0 * (1.0 - float(np.nanmean(intersection_over_union(counts.sum(axis=0)))))

    def measures(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns the IoU of each class in percent, None for one that does not occur, and the accuracy over pixels."""
        matrix = counts.sum(axis=0)
        by_class = intersection_over_union(matrix)
        return {
            "iou": {
                name: None if np.isnan(value) else 100.0 * float(value)
                for name, value in zip(self.class_names, by_class, strict=True)
            },
            "pixel_accuracy": 100.0 * float(np.trace(matrix) / max(1, matrix.sum())),
        }


def intersection_over_union(confusion: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of each class, NaN for one that neither occurs nor is answered.

    Args:
        confusion: Pixels by class (row) and answer (column), `[K, K]`.
    """
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
