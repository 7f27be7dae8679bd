"""Classes: each image is of one."""

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.problems.base import PROBLEMS, Problem
from piggyback_tf.problems.heads import HeadSpec
from piggyback_tf.settings.methods import MethodConfig
from piggyback_tf.top_k import top_k_hits


class TopOneError(keras.metrics.SparseCategoricalAccuracy):
    """Fraction of images whose most probable class is wrong."""

    def result(self) -> tf.Tensor:
        return 1.0 - super().result()


@PROBLEMS.register("class")
class Classification(Problem):
    """Finds the class of an image; the error is the top-1 error."""

    score_name = "top-1 accuracy"

    def head(self, config: MethodConfig) -> HeadSpec:
        del config
        return HeadSpec("dense", len(self.class_names))

    def loss(self, reduction: str) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `"probabilities"`, float32 `[B, C]`."""
        return {"probabilities": tf.nn.softmax(logits)}

    def metrics(self) -> list[keras.metrics.Metric]:
        return [
            TopOneError(name="error"),
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
        ]

    def count(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns for each image whether its class is not the first answer, and whether it is not among the first five.

        Returns:
            Boolean `[B, 2]`.
        """
        return np.stack([~top_k_hits(targets, logits, k) for k in (1, 5)], axis=1)

    def error(self, counts: np.ndarray) -> float:
        return 100.0 * float(np.mean(counts[:, 0]))
