"""Converts to the content of a .tflite file: a network with given weights, or a module with signatures."""

import tempfile
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.problems import head_logits
from piggyback_tf.surgery import features_with

from ..shared.errors import ExportError
from .weights import HEAD_BIAS, HEAD_KERNEL

Signatures = Mapping[str, tf.types.experimental.ConcreteFunction]


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
        features = features_with(backbone.model, mapping, images)
        if HEAD_KERNEL not in weights:
            return {"features": features}
        logits = head_logits(features, weights[HEAD_KERNEL], weights[HEAD_BIAS])
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


def convert_signatures(module: tf.Module, signatures: Signatures, *, float16: bool) -> bytes:
    """Converts a module whose signatures LiteRT's own operators compute.

    Args:
        module: The module.
        signatures: Its signatures by name.
        float16: Whether its constants become float16; else they stay float32.

    Returns:
        The content of the file.

    Raises:
        ExportError: If they cannot compute a signature.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=dict(signatures))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.experimental_enable_resource_variables = True
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # noqa: BLE001 (the converter has no public exception type)
            reason = next((line for line in str(error).splitlines() if "error:" in line), str(error).splitlines()[0])
            raise ExportError(f"LiteRT's own operators cannot compute this network: {reason}") from error
