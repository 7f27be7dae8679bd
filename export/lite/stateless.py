"""Design `input`: the task is an argument of every call, and the model keeps nothing.

`predict(images, mask, norm, head, bias)` unpacks the mask in each call, which takes longer than `switch` does, and lets
any number of threads and tasks share a file.
"""

from collections.abc import Iterable
from pathlib import Path

import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskPack

from .device_file import Signatures, export_device, head_probabilities, head_specs, images_spec
from .device_network import DeviceNetwork


def export_stateless(
    backbone: Backbone, packs: Iterable[TaskPack], output: Path, *, max_classes: int | None, float16: bool
) -> list[Path]:
    """Writes `model.tflite` with the signature `predict`, and `<task>.inputs.safetensors` for each task.

    See `export_device` for arguments and errors.
    """
    return export_device(make_stateless, "input", backbone, packs, output, max_classes=max_classes, float16=float16)


def make_stateless(network: DeviceNetwork) -> tuple[tf.Module, Signatures]:
    """Returns a module without variables, and its signature."""

    def predict(images: tf.Tensor, head: tf.Tensor, bias: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = network.values(inputs.get("mask"), inputs.get("norm"))
        return {"probabilities": head_probabilities(images, network.features(values, images), head, bias)}

    module = tf.Module()
    module.predict = tf.function(predict, autograph=False)
    return module, {"predict": module.predict.get_concrete_function(images_spec(network), **head_specs(network))}
