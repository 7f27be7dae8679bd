"""Any number of classes: of each class it is asked by itself whether an image is of it."""

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.problems.base import CLASSES, PROBLEMS, AnswerSpec, Problem
from piggyback_tf.problems.class_means import average_precision, measured_by_class


class MeanPrecisionError(keras.metrics.Metric):
    """1 less the mean average precision of logits; those within half a percent, or beyond 16, count as equal."""

    def __init__(self, classes: int):
        super().__init__(name="error")
        self.found = self.add_variable((4096, classes, 2), "zeros", name="found")

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None) -> None:
        weights = tf.ones_like(y_pred) * (1.0 if sample_weight is None else sample_weight[:, None])
        places = tf.cast(2048 + 197.4 * tf.asinh(1000 * tf.clip_by_value(y_pred, -16, 16)), tf.int32)
        places = tf.stack([places, tf.zeros_like(places) + tf.range(y_pred.shape[1])], axis=-1)
        counts = tf.stack([weights * tf.cast(y_true, weights.dtype), weights], axis=-1)
        self.found.assign_add(tf.scatter_nd(places, counts, self.found.shape))

    def result(self) -> tf.Tensor:
        hits, images = tf.unstack(tf.cumsum(self.found.value, reverse=True), axis=-1)
        gained = tf.reduce_sum(self.found.value[..., 0] * tf.math.divide_no_nan(hits, images), 0)
        by_class, occur = tf.math.divide_no_nan(gained, hits[0]), tf.math.count_nonzero(hits[0], dtype=tf.float32)
        return 1.0 - tf.math.divide_no_nan(tf.reduce_sum(by_class), occur)


@PROBLEMS.register("multilabel")
class MultiLabel(Problem):
    """Finds the classes that an image is of; the error is 100 % less the mean average precision over those that occur.

    The average precision of a class is not interpolated, as in scikit-learn; see `average_precision`.
    """

    ranks_classes = True
    activation, signature = "sigmoid", "tag"
    answers = file_answers = {"probabilities": AnswerSpec("float32", (CLASSES,))}

    def loss(self, reduction: str) -> keras.losses.Loss:
        return keras.losses.BinaryCrossentropy(from_logits=True, reduction=reduction)

    def chance(self, labels: np.ndarray, heads: Sequence[int] = ()) -> float:
        """Returns the entropy of whether an image is of a class, the mean over classes."""
        shares = np.stack([labels.mean(axis=0), 1 - labels.mean(axis=0)])
        return float(-(shares * np.log(np.maximum(shares, 1e-9))).sum(axis=0).mean())

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `"probabilities"`, float32 `[B, C]`, that of each class by itself."""
        return {"probabilities": tf.nn.sigmoid(logits)}

    def metrics(self) -> list[keras.metrics.Metric]:
        cross_entropy = keras.metrics.BinaryCrossentropy(from_logits=True, name="cross_entropy")
        return [MeanPrecisionError(len(self.class_names)), cross_entropy]

    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns score and truth of each class, float32 `[B, 2, C]`."""
        shapes, wanted = [np.shape(answers), np.shape(targets)], (len(targets), len(self.class_names))
        if shapes != [wanted] * 2 or np.isnan(answers).any() or not np.isin(targets, (0, 1)).all():
            raise ValueError(f"Answers without NaN, and targets of 0 and 1, must be {wanted}. Received: {shapes}.")
        return np.stack([answers, targets], axis=1).astype(np.float32)

    def measured(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns `"mean_precision_error"`, and under `"average_precision"` that of each class."""
        measure = functools.partial(average_precision, counts[:, 0], counts[:, 1])
        errors, by_class = measured_by_class("mean_precision_error", measure, len(counts), self.class_names)
        return {**errors, "average_precision": by_class}
