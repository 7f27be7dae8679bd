"""What a network makes of images with tensors in the place of its variables, which stay as they are."""

from collections.abc import Iterable

import keras
import tensorflow as tf


def features_with(
    model: keras.Model, values: Iterable[tuple[keras.Variable, tf.Tensor]], images: "tf.Tensor | list[tf.Tensor]"
) -> "tf.Tensor | list[tf.Tensor]":
    """Returns the features of images, float32 `[B, F]`, or the tensors that the network ends in if there are several.

    It is what bank, superposition and exports compute with: a call has its own tensors, and threads do not meet.

    Args:
        model: The network; not changed.
        values: Variables of it, and what stands for each; the others keep their values.
        images: float32 `[B, S, S, 3]` in [0, 255]; of a head what it stands on.
    """
    # Within the scope Keras reads these tensors in the place of the variables, in this thread only.
    with keras.StatelessScope(state_mapping=list(values)):
        found = model(images, training=False)
    # Several are feature maps for a head that was built for their dtypes.
    return found if isinstance(found, list) else tf.cast(found, tf.float32)
