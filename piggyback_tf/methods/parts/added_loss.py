"""Losses with a term beside that of the labels: of weights, or of other targets for the same images."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# From images `[B, S, S, 3]` and what the model answered in training, to a scalar that depends on weights alone, or to
# one value for each image, `[B]`; None leaves the term out of the phase.
AddedLoss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor | None]


def no_term(images: tf.Tensor, answers: tf.Tensor) -> None:
    """The `AddedLoss` of a model that needs one and has no term."""
    del images, answers


class ExtendedModel(keras.Model):
    """A functional model whose loss in training has one more term.

    Args:
        *args: As for a functional `keras.Model`.
        added_loss: Returns the term.
        **kwargs: As for a functional `keras.Model`.
    """

    def __init__(self, *args: Any, added_loss: AddedLoss, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.added_loss = added_loss

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        loss = self.labels_loss(x, y, y_pred, sample_weight, training)
        term = self.added_term(x, y_pred, sample_weight) if training else None
        return loss if term is None else loss + term

    def labels_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        """Returns the loss without the term; arguments are those of `compute_loss`."""
        return super().compute_loss(x, y, self.answers_to_labels(y_pred), sample_weight, training)

    def added_term(self, x: Any, y_pred: Any, sample_weight: Any = None) -> tf.Tensor | None:
        """Returns the term, or what is a part of it on one of several devices, as a number; None if there is none."""
        term = self.added_loss(x, y_pred)
        if term is None:
            return None
        if term.shape.rank:
            # As the loss of the labels: a mean over a batch, or what is a part of it on one of several devices.
            return AsGiven(reduction=self.loss.reduction)(term, term, sample_weight=sample_weight)
        # The losses of several devices are summed, and each of them adds the term.
        return term / tf.distribute.get_strategy().num_replicas_in_sync

    def answers_to_labels(self, answers: tf.Tensor) -> tf.Tensor:
        """Returns the logits that labels are compared with, of all that the model answers in training."""
        return answers


class AsGiven(keras.losses.Loss):
    """A loss whose value for each image is known."""

    def call(self, y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
        del y_true
        return y_pred
