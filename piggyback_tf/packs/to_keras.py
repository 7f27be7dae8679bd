"""A task as a plain Keras model, for programs that know nothing of masks."""

from collections.abc import Mapping

import keras
import numpy as np

from piggyback_tf.backbones import finalize_layers, named_variables
from piggyback_tf.problems import HEAD_NAME
from piggyback_tf.surgery import copy_of_base


def keras_model(base: keras.Model, weights: Mapping[str, np.ndarray], kernel: np.ndarray, bias: np.ndarray):
    """Returns a functional model with weights of its own: a network with a softmax head.

    Args:
        base: The network, from images `[B, S, S, 3]` to features `[B, F]`; not changed.
        weights: Values of its weights by canonical path; weights that are not named keep the base's value.
        kernel: The head's kernel `[F, C]`.
        bias: The head's bias `[C]`.

    Returns:
        A model from images `[B, S, S, 3]` to float32 probabilities `[B, C]`, made of the base's kinds of layers and a
        Dense layer.
    """
    features = copy_of_base(base)
    for path, variable in named_variables(features).items():
        if path in weights:
            variable.assign(weights[path])
    finalize_layers(features)
    head = keras.layers.Dense(kernel.shape[1], activation="softmax", dtype="float32", name=HEAD_NAME)
    model = keras.Model(features.input, head(features.output), name=features.name)
    head.set_weights([kernel, bias])
    return model
