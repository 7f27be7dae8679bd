"""Classes: each image is of one."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.problems.base import CLASSES, PROBLEMS, AnswerSpec, Problem
from piggyback_tf.top_k import top_k_errors, top_k_misses


class TopOneError(keras.metrics.SparseCategoricalAccuracy):
    """Fraction of images whose most probable class is wrong."""

    def result(self) -> tf.Tensor:
        return 1.0 - super().result()


@PROBLEMS.register("class")
class Classification(Problem):
    """Finds the class of an image; the error is the top-1 error."""

    infers_task = True
    ranks_classes = True
    answers = {"probabilities": AnswerSpec("float32", (CLASSES,))}

    def loss(self, reduction: str) -> keras.losses.Loss:
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)

    def chance(self, labels: np.ndarray, heads: Sequence[int] = ()) -> float:
        """Returns the entropy of the classes; with several heads, that within each."""
        if not heads:
            return _entropy(labels)
        # H(label | head) = H(label) - H(head).
        return _entropy(labels) - _entropy(np.repeat(np.arange(len(heads)), heads)[labels])

    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `"probabilities"`, float32 `[B, C]`."""
        return {"probabilities": tf.nn.softmax(logits)}

    def metrics(self) -> list[keras.metrics.Metric]:
        return [
            TopOneError(name="error"),
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
        ]

    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns for each image what `top_k_misses` does, boolean `[B, 2]`."""
        return top_k_misses(targets, answers)

    def measured(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns what `top_k_errors` does."""
        return top_k_errors(counts, len(self.class_names))


def _entropy(values: np.ndarray) -> float:
    """Returns the entropy of what is found in a non-empty array of whole numbers, in nats."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log(share)).sum())
