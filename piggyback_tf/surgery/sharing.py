"""Layers that read the variables of another layer, and can neither train nor overwrite them."""

from collections.abc import Collection
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones.paths import finalize_layer, layer_weights


class BaseVariable(keras.Variable):
    """A Keras variable over the storage of a frozen base's variable.

    It has a trainable flag of its own, always False, so that `model.trainable = True` on the sharing model cannot
    thaw the base; the base's variable keeps whatever flag it has. Assigning anything but its own value is refused.
    """

    @property
    def trainable(self) -> bool:
        return False

    @trainable.setter
    def trainable(self, value: bool) -> None:
        # Keras sets this flag on all variables of a layer whenever `layer.trainable` changes.
        del value

    def assign(self, value: Any) -> Any:
        # Restoring a checkpoint or the best weights writes everything back, the base as it was included.
        if tf.executing_eagerly() and np.array_equal(keras.ops.convert_to_numpy(value), self.numpy()):
            return self.value
        raise ValueError(
            f"Variable {self.path!r} belongs to a frozen base that other models share, and is never written. "
            "To load other weights, load them into a new base and mask that."
        )


def share_variables(layer: keras.Layer, source: keras.Layer, own: Collection[str] = ()) -> None:
    """Makes the weights of `layer` read the storage of the weights of `source`.

    Args:
        layer: A built layer; weights that `source` does not have (masks) keep their own storage.
        source: The layer of the base that it stands for; not changed.
        own: Names of weights of `source` that `layer` has for itself, and which only start with their values.

    Raises:
        ValueError: If a weight of `source` has no match of the same shape and dtype in `layer`.
    """
    targets = layer_weights(layer)
    for name, variable in layer_weights(source).items():
        target = targets.get(name)
        if target is None or target.shape != variable.shape or target.dtype != variable.dtype:
            raise ValueError(
                f"Weight {variable.path!r} (shape {tuple(variable.shape)}, {variable.dtype}) of layer "
                f"{source.name!r} has no match in its copy {layer.name!r}."
            )
        if name in own:
            target.assign(variable)
            continue
        # Keras has no call for this. The value is a tf.Variable; the wrapper around it carries flags and names.
        target._value = variable._value
        target.__class__ = BaseVariable
    finalize_layer(layer)
