"""Training steps that know the gradient of the labels' loss and that of an added term apart."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.methods.parts.added_loss import ExtendedModel

# From what is trained, and the gradients of the labels' loss and of the added term by each of these, as the optimiser
# scales them in half precision; on one of several devices, its parts of their sums. The last is None if there is no
# added term. It is called once in each step, and changes the weights.
TakeStep = Callable[[Sequence[keras.Variable], Sequence[tf.Tensor], Sequence[tf.Tensor] | None], None]


def separate_step(model: ExtendedModel, data: Any, take_step: TakeStep) -> dict[str, Any]:
    """Does a training step of a model, of which the gradients of both parts of the loss are taken by themselves.

    The added term must depend on weights alone, not on the answers of the step. What Keras reports as the loss is the
    sum of both parts. This is a function, since Keras makes no functional model of a class that has it from two sides.

    Args:
        model: A compiled model.
        data: What Keras gives a `train_step`.
        take_step: What is done with the gradients.

    Returns:
        What a `train_step` returns.
    """
    images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    variables, zero = model.trainable_weights, tf.UnconnectedGradients.ZERO
    values = [variable.value for variable in variables]
    with tf.GradientTape() as tape:
        answers = model(images, training=True)
        loss = model.labels_loss(images, labels, answers, sample_weight)
        scaled = model.optimizer.scale_loss(loss)
    own = tape.gradient(scaled, values, unconnected_gradients=zero)
    with tf.GradientTape() as tape:
        term = model.added_term(images, answers, sample_weight)
        scaled = None if term is None else model.optimizer.scale_loss(term)
    added = None if scaled is None else tape.gradient(scaled, values, unconnected_gradients=zero)
    # As Keras' own step does: it averages over the devices, whose losses are summed.
    total = (loss if term is None else loss + term) * tf.distribute.get_strategy().num_replicas_in_sync
    for metric in model.metrics:
        if metric.name == "loss":
            metric.update_state(total, sample_weight=tf.shape(images)[0])
    take_step(variables, own, added)
    return model.compute_metrics(images, labels, answers, sample_weight)


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
