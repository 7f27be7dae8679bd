"""What the graphs of all exports have in common."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def features_with(
    model: keras.Model, values: Iterable[tuple[keras.Variable, tf.Tensor]], images: tf.Tensor
) -> tf.Tensor:
    """Returns the features of images, float32 `[B, F]`, with tensors in the place of a network's variables.

    Args:
        model: The network; its variables stay as they are.
        values: Variables, and what stands for each.
        images: float32 `[B, S, S, 3]` in [0, 255].
    """
    # Within the scope Keras reads these tensors in the place of the variables.
    with keras.StatelessScope(state_mapping=list(values)):
        return tf.cast(model(images, training=False), tf.float32)


def good_images(images: tf.Tensor) -> tf.Tensor:
    """Returns which images hold nothing but numbers in [0, 255], bool `[B]`."""
    if not images.dtype.is_floating:
        return tf.fill(tf.shape(images)[:1], True)
    # NaN compares as false.
    return tf.reduce_all((images >= 0) & (images <= 255), axis=[1, 2, 3])
