"""Training steps that know the gradient of the labels' loss and that of an added term apart."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.methods.parts.added_loss import ExtendedModel


class SeparateGradientsModel(ExtendedModel):
    """A functional model whose training step takes the gradients of both parts of its loss by themselves.

    By default it steps as an `ExtendedModel` does. `added_loss` must depend on weights alone, not on the answers of the
    step. What Keras reports as the loss is the sum of both parts.
    """

    def train_step(self, data: Any) -> dict[str, Any]:
        images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        variables, zero = self.trainable_weights, tf.UnconnectedGradients.ZERO
        values = [variable.value for variable in variables]
        with tf.GradientTape() as tape:
            answers = self(images, training=True)
            loss = self.labels_loss(images, labels, answers, sample_weight)
            scaled = self.optimizer.scale_loss(loss)
        own = tape.gradient(scaled, values, unconnected_gradients=zero)
        with tf.GradientTape() as tape:
            term = self.added_term(images, answers, sample_weight)
            scaled = None if term is None else self.optimizer.scale_loss(term)
        added = None if scaled is None else tape.gradient(scaled, values, unconnected_gradients=zero)
        # As Keras' own step does: it averages over the devices, whose losses are summed.
        total = (loss if term is None else loss + term) * tf.distribute.get_strategy().num_replicas_in_sync
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(total, sample_weight=tf.shape(images)[0])
        self.take_step(variables, own, added)
        return self.compute_metrics(images, labels, answers, sample_weight)

    def take_step(
        self, variables: Sequence[keras.Variable], own: Sequence[tf.Tensor], added: Sequence[tf.Tensor] | None
    ) -> None:
        """Changes the weights, once in each training step.

        Args:
            variables: What is trained.
            own: The gradient of the labels' loss by each, as the optimiser scales it in half precision; on one of
                several devices, its part of their sum.
            added: The same of the added term; None if there is none.
        """
        gradients = own if added is None else [one + other for one, other in zip(own, added, strict=True)]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))


def summed(tensors: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
    """Returns the sums over all devices of tensors that each of them has in a training step."""
    if tf.distribute.get_strategy().num_replicas_in_sync == 1:
        return tensors
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))


class PassingLayer(keras.layers.Layer):
    """Passes on what it gets, bit for bit; a subclass holds what belongs to a model and to none of its layers."""

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, trainable=False, **kwargs)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs
