"""Losses with a term that depends on weights and not on images."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


class PenalisedModel(keras.Model):
    """A functional model whose loss in training has one more term.

    Args:
        *args: As for a functional `keras.Model`.
        penalty: Returns the term, a scalar that depends on nothing but weights.
        **kwargs: As for a functional `keras.Model`.
    """

    def __init__(self, *args: Any, penalty: Callable[[], tf.Tensor], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.penalty = penalty

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        # The losses of several devices are summed, and each of them adds the term.
        return loss + self.penalty() / tf.distribute.get_strategy().num_replicas_in_sync
