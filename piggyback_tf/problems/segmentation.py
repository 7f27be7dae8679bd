"""Segments: each pixel of an image is of one class, or of none that counts."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.confusion import intersection_over_union
from piggyback_tf.data import Operation, Original, at_own_size
from piggyback_tf.data.geometry import VOID
from piggyback_tf.problems.base import HEIGHT, PNG, PROBLEMS, WIDTH, AnswerSpec, Problem, WayBack
from piggyback_tf.problems.class_means import measured_by_class
from piggyback_tf.problems.heads import HeadSpec
from piggyback_tf.settings.methods import MethodConfig

# Channels of the pyramid: with float16 the head of 11 classes on MobileNetV2 takes 131 kB.
_WIDTH = 28


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
        class_weights: What the cross-entropy of a pixel of each class is multiplied by; none if empty.
    """

    def __init__(
        self,
        reduction: str = "sum_over_batch_size",
        name: str = "cross_entropy",
        class_weights: Sequence[float] = (),
    ):
        super().__init__(name=name, reduction=reduction)
        self._class_weights = tuple(class_weights)

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        return pixel_cross_entropy(y_true, y_pred, self._class_weights)


def pixel_cross_entropy(labels: tf.Tensor, logits: tf.Tensor, class_weights: Sequence[float] = ()) -> tf.Tensor:
    """Returns the cross-entropy of each image, float32 `[B]`; see `PixelCrossEntropy`.

    Args:
        labels: Label maps `[B, H, W]` with `VOID` for pixels of no class, of any type.
        logits: `[B, H, W, K]`.
        class_weights: As of `PixelCrossEntropy`.
    """
    labels = tf.cast(labels, tf.int32)
    known = labels != VOID
    numbers = tf.where(known, labels, 0)
    found = tf.nn.sparse_softmax_cross_entropy_with_logits(numbers, tf.cast(logits, tf.float32))
    if class_weights:
        found *= tf.gather(tf.constant(class_weights, tf.float32), numbers)
    known = tf.cast(known, tf.float32)
    return tf.math.divide_no_nan(tf.reduce_sum(found * known, [1, 2]), tf.reduce_sum(known, [1, 2]))


@PROBLEMS.register("map")
class Segmentation(Problem):
    """Finds the class of each pixel; the error is 100 % less the mean intersection over union (Long et al., CVPR 2015).

    With `n_ij` pixels of class i that are taken for class j, and `t_i = sum_j n_ij`:

        mean IoU = mean over i of n_ii / (t_i + sum_j n_ji - n_ii)

    over the classes that occur in the images or in the answers.
    """

    signature = "segment"
    answers = {"labels": AnswerSpec("uint8", (HEIGHT, WIDTH), VOID)}
    file_answers = {"png_bytes": AnswerSpec(PNG)}
    weighs_classes = True
    judges_originals = True
    answers_labels = True
    head_first = 0.25
    mask_trust = 0.1

    def head(self, config: MethodConfig) -> HeadSpec:
        width = _WIDTH if config.head == "fpn" else 0
        return HeadSpec(config.head, len(self.class_names), width, self.image_shape)

    def loss(self, reduction: str) -> keras.losses.Loss:
        return PixelCrossEntropy(reduction)

    def weighted_loss(self, reduction: str, class_weights: Sequence[float]) -> keras.losses.Loss:
        return PixelCrossEntropy(reduction, class_weights=class_weights)

    def frequencies(self, target: np.ndarray) -> np.ndarray:
        """Returns how many pixels of each class an image has; `target` is the image with its labels behind."""
        return np.bincount(target[..., 3].reshape(-1), minlength=VOID + 1)[: len(self.class_names)]

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `"labels"`, uint8 `[B, H, W]`: the most probable class of each pixel, of equal ones the first."""
        return {"labels": tf.cast(tf.argmax(logits, axis=-1), tf.uint8)}

    def file_answer(self, answers: Mapping[str, tf.Tensor], way: WayBack) -> dict[str, tf.Tensor]:
        """Returns `"png_bytes"`, string: a grey PNG of the size of the image, whose pixels are numbers of classes.

        It is what `at_own_size` makes of the labels: a pixel that was cut off has the label of the nearest one.
        """
        labels = answers["labels"]
        for axis in (0, 1):
            middles = tf.cast(tf.range(way.size[axis]), tf.float64) + 0.5
            places = tf.cast(tf.floor(way.scale[axis] * middles + way.offset[axis]), tf.int32)
            labels = tf.gather(labels, tf.clip_by_value(places, 0, tf.shape(labels)[axis] - 1), axis=axis)
        return {"png_bytes": tf.io.encode_png(labels[..., None])}

    def metrics(self) -> list[keras.metrics.Metric]:
        cross_entropy = keras.metrics.MeanMetricWrapper(pixel_cross_entropy, name="cross_entropy")
        return [MeanIoUError(len(self.class_names)), cross_entropy]

    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the confusion matrix of each image, int32 `[B, K, K]`: rows are classes, columns answers."""
        targets, labels = np.asarray(targets), self._labels(answers)
        if labels.shape != targets.shape:
            raise ValueError(
                f"Answers must be label maps [B, H, W] or [B, H, W, {len(self.class_names)}], and targets [B, H, W]. "
                f"Received: {list(np.shape(answers))}, {list(targets.shape)}."
            )
        return np.stack([self._confusion(*pair) for pair in zip(labels, targets, strict=True)])

    def count_originals(
        self, answers: np.ndarray, targets: np.ndarray, originals: Iterable[Original], operations: Sequence[Operation]
    ) -> np.ndarray:
        """Does what `count` does, at the size that each image has in its source."""
        del targets
        counts = []
        for labels, original in zip(self._labels(answers), originals, strict=True):
            counts.append(self._confusion(at_own_size(labels, operations, original.size), original.target))
        return np.stack(counts)

    def measured(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns `"mean_iou_error"`, the accuracy over pixels and the IoU of each class, in percent.

        The IoU of a class that does not occur is None.
        """

        def measure(times: np.ndarray) -> np.ndarray:
            flat = counts.reshape(len(counts), -1).astype(np.float64)
            return intersection_over_union((times @ flat).reshape(-1, *counts.shape[1:]))

        errors, by_class = measured_by_class("mean_iou_error", measure, len(counts), self.class_names)
        matrix = counts.sum(axis=0, dtype=np.int64)
        accuracy = 100.0 * float(np.trace(matrix) / max(1, matrix.sum()))
        return {**errors, "pixel_accuracy": accuracy, "iou": by_class}

    def _labels(self, answers: np.ndarray) -> np.ndarray:
        """Returns label maps `[B, H, W]` of logits, probabilities, or label maps."""
        answers = np.asarray(answers)
        if answers.ndim == 3:
            if answers.size and not 0 <= answers.min() <= answers.max() < len(self.class_names):
                raise ValueError(
                    f"Label maps that are answers must hold classes below {len(self.class_names)}. Received: "
                    f"{answers.min()} to {answers.max()}."
                )
            return answers
        if answers.ndim != 4 or answers.shape[-1] != len(self.class_names):
            raise ValueError(
                f"Answers of {len(self.class_names)} classes must be [B, H, W, {len(self.class_names)}]. Received: "
                f"{list(answers.shape)}."
            )
        if np.isnan(answers).any():
            raise ValueError("Answers must not be NaN.")
        return answers.argmax(axis=-1)

    def _confusion(self, labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Returns the confusion matrix of one image, int32 `[K, K]`."""
        classes, known = len(self.class_names), truth != VOID
        if strange := [int(value) for value in np.unique(truth[known]) if value >= classes]:
            raise ValueError(f"Label maps must hold classes below {classes}, or {VOID}. Received: {strange[0]}.")
        pairs = truth[known].astype(np.int64) * classes + labels[known]
        return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes).astype(np.int32)
