"""Converts to the content of a .tflite file: a network with given weights, or a module with signatures."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.files import scratch_folder
from piggyback_tf.problems import HEAD_NAME, HeadNetwork, Problem, is_head
from piggyback_tf.surgery import features_with

from ..shared.errors import ExportError, reason_of
from .kinds import GraphKind

Signatures = Mapping[str, tf.types.experimental.ConcreteFunction]


# A model type of TensorFlow's `conversion_metadata_schema_py_generated`.
_OF_FUNCTIONS = 3


def convert(
    backbone: Backbone,
    kind: GraphKind,
    weights: Mapping[str, np.ndarray],
    quantize: str,
    *,
    problem: Problem | None = None,
    images: np.ndarray | None = None,
) -> bytes:
    """Converts a base whose weights are constants.

    Args:
        backbone: The base, of which only the structure is used, and the weights that are not given.
        kind: What the graph is for. With room for classes it ends in what its head says, else in features.
        weights: Weights by path, in the place of the base's own, and all of the head's.
        quantize: One of `QUANTIZATIONS`; `"int8"` needs `images`, and keeps images and output float32.
        problem: The problem whose answers the graph ends in; None for what devices make answers of.
        images: What the converter finds the ranges of int8 on, float32 `[N, H, W, 3]`.

    Returns:
        The content of the file. Its signature `serving_default` takes `images`, float32 `[1, H, W, 3]`, and returns
        `features`, what `HeadNetwork.outputs` returns, such as `logits`, or the answers of the problem.
    """
    variables = named_variables(backbone.model)
    values = [
        tf.constant(weights[path] if path in weights else variable.numpy()) for path, variable in variables.items()
    ]
    head = {path.removeprefix(f"{HEAD_NAME}/"): value for path, value in weights.items() if is_head(path)}
    network = HeadNetwork(backbone, kind.head)

    def forward(images: tf.Tensor) -> dict[str, tf.Tensor]:
        if not kind.room:
            return {"features": features_with(backbone.model, zip(variables.values(), values, strict=True), images)}
        if problem is None:
            return network.outputs(values, head, images)
        return problem.answer(network.logits(values, head, images))

    module = tf.Module()
    module.forward = tf.function(
        forward, input_signature=[tf.TensorSpec([1, *kind.image_shape, 3], tf.float32, "images")], autograph=False
    )
    functions = {"serving_default": module.forward.get_concrete_function()}
    with _saved(module, functions) as folder:
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        # The file says of itself that it was made of functions, as it does where the converter saves them itself, in a
        # folder that stays when it is killed.
        converter._metadata.environment.modelType = _OF_FUNCTIONS
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
    with _saved(module, signatures) as folder:
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


@contextlib.contextmanager
def _saved(module: tf.Module, signatures: Signatures) -> Iterator[str]:
    """Yields the folder of a SavedModel, which goes when the block ends.

    Raises:
        ExportError: If it cannot be written.
    """
    with scratch_folder() as parent:
        folder = str(parent / "model")
        try:
            tf.saved_model.save(module, folder, signatures=dict(signatures))
        except tf.errors.OpError as error:
            raise ExportError(f"{str(parent.parent)!r} cannot be written: {reason_of(error.message)}.") from error
        yield folder
