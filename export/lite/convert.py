"""From a network with given weights to a .tflite file, and the images that the ranges of int8 are found on."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data import load_data, make_dataset, surface_data_errors
from piggyback_tf.packs import TaskPack

from ..shared.errors import ExportError
from ..shared.graph import features_with
from .weights import HEAD_BIAS, HEAD_KERNEL


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


def representative_images(specs: str, packs: list[TaskPack], count: int) -> list[np.ndarray]:
    """Returns images for each task, prepared as the task says, float32 `[N, S, S, 3]`.

    Args:
        specs: A data spec for all tasks, or one for each by comma.
        packs: The tasks.
        count: How many images of each; fewer if there are no more. They are spread over the training split. Files that
            cannot be used are left out, and the log says which: of a sample no result depends on a single image.

    Raises:
        ExportError: If there are neither one nor as many specs as packs.
        DataError: If the images cannot be read.
    """
    return [_images(spec, pack, count) for spec, pack in zip(split_specs(specs, len(packs)), packs, strict=True)]


def split_specs(specs: str, packs: int) -> list[str]:
    """Returns the data spec of each pack; see `representative_images`.

    Raises:
        ExportError: If there are neither one nor as many specs as packs.
    """
    given = specs.split(",")
    if len(given) not in (1, packs):
        raise ExportError(
            f"representative_data has {len(given)} data specs for {packs} packs; give one, or one for each."
        )
    return given if len(given) == packs else given * packs


def _images(spec: str, pack: TaskPack, count: int) -> np.ndarray:
    source = load_data(spec, skip_broken_images=True).train
    with surface_data_errors():
        batches = make_dataset(source, pack.eval_augment, batch_size=1, training=False, cache="none")
        step = max(1, len(source.labels) // count)
        chosen = [images.numpy()[0] for images, _ in batches.shard(step, 0).take(count)]
    images = np.stack(chosen).astype(np.float32)
    if images.shape[1:3] != (pack.image_size, pack.image_size):
        raise ExportError(
            f"Task {pack.task!r} prepares images of {spec!r} to {images.shape[1]}x{images.shape[2]} pixels, and its "
            f"base takes {pack.image_size}x{pack.image_size}."
        )
    return images
