"""A task as a plain Keras model, for programs that know nothing of masks."""

from collections.abc import Mapping

import keras
import numpy as np

from piggyback_tf.backbones import Backbone, finalize_layers, named_variables
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems import HEAD_NAME, add_head, is_head, network_for
from piggyback_tf.surgery import copy_of_base


def keras_model(
    backbone: Backbone,
    spec: HeadSpec,
    activation: str,
    weights: Mapping[str, np.ndarray],
    head: Mapping[str, np.ndarray],
) -> keras.Model:
    """Returns a functional model with weights of its own: a network with a head that gives probabilities.

    Args:
        backbone: The network, from images `[B, S, S, 3]` to features `[B, F]`; not changed.
        spec: Which head.
        activation: What makes probabilities of logits, by its name in Keras.
        weights: Values of the network's weights by canonical path; those that are not named keep their value.
        head: Values of the head's variables by name.

    Returns:
        A model from images `[B, S, S, 3]` to float32 probabilities `[B, C]`, or from `[B, H, W, 3]` to
        `[B, H, W, C]` of a head for pixels, made of the base's kinds of layers and those of the head.
    """
    network, endpoints = network_for(backbone, spec)
    features = copy_of_base(network.model)
    for path, variable in named_variables(features).items():
        if path in weights:
            variable.assign(weights[path])
    finalize_layers(features)
    model = add_head(features, spec, endpoints=endpoints)
    for path, variable in named_variables(model).items():
        if is_head(path):
            variable.assign(head[path.removeprefix(f"{HEAD_NAME}/")])
    finalize_layers(model)
    if spec.is_dense:
        # One layer, as a plain classifier has it.
        model.get_layer(HEAD_NAME).activation = keras.activations.get(activation)
        return model
    probabilities = keras.layers.Activation(activation, dtype="float32", name="probabilities")(model.output)
    return keras.Model(model.input, probabilities, name=model.name)
