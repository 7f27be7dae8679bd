"""The features of a network with tensors in the place of its variables, which stay as they are."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def features_with(
    model: keras.Model, values: Iterable[tuple[keras.Variable, tf.Tensor]], images: tf.Tensor
) -> tf.Tensor:
    """Returns the features of images, float32 `[B, F]`.

    It is what bank, superposition and exports compute with: a call has its own tensors, and threads do not meet.

    Args:
        model: The network; not changed.
        values: Variables of it, and what stands for each; the others keep their values.
        images: float32 `[B, S, S, 3]` in [0, 255].
    """
    # Within the scope Keras reads these tensors in the place of the variables, in this thread only.
    with keras.StatelessScope(state_mapping=list(values)):
        return tf.cast(model(images, training=False), tf.float32)
