"""From a network with given weights to a .tflite file."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables

HEAD_KERNEL, HEAD_BIAS = "head/kernel", "head/bias"


def convert(
    backbone: Backbone,
    weights: Mapping[str, np.ndarray],
    quantize: str,
    *,
    softmax: bool = False,
    images: np.ndarray | None = None,
) -> bytes:
    """Converts a base whose weights are constants.

    Args:
        backbone: The base, of which only the structure is used, and the weights that are not given.
        weights: Weights by path, in the place of the base's own. If `HEAD_KERNEL` and `HEAD_BIAS` are among them, the
            graph ends in the logits of this head, else in features.
        quantize: One of `QUANTIZATIONS`; `"int8"` needs `images`, and keeps images and output float32.
        softmax: Whether the graph ends in probabilities in the place of logits.
        images: What the converter finds the ranges of int8 on, float32 `[N, S, S, 3]`.

    Returns:
        The content of the file. Its signature `serving_default` takes `images`, float32 `[1, S, S, 3]`, and returns
        `features`, `logits` or `probabilities`.
    """
    mapping = [
        (variable, tf.constant(weights[path] if path in weights else variable.numpy()))
        for path, variable in named_variables(backbone.model).items()
    ]
    size = backbone.image_size

    def forward(images: tf.Tensor) -> dict[str, tf.Tensor]:
        # Within the scope Keras reads these tensors in the place of the variables.
        with keras.StatelessScope(state_mapping=mapping):
            features = tf.cast(backbone.model(images, training=False), tf.float32)
        if HEAD_KERNEL not in weights:
            return {"features": features}
        logits = tf.nn.bias_add(tf.matmul(features, weights[HEAD_KERNEL]), weights[HEAD_BIAS])
        return {"probabilities": tf.nn.softmax(logits)} if softmax else {"logits": logits}

    module = tf.Module()
    module.forward = tf.function(
        forward, input_signature=[tf.TensorSpec([1, size, size, 3], tf.float32, "images")], autograph=False
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions([module.forward.get_concrete_function()], module)
    if quantize != "none":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()
