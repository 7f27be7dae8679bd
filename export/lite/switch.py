"""Design `switch`: the filters of the current task are variables of the model, which `set_task` writes.

`set_task(mask, norm, head, bias)` unpacks the mask, multiplies it with the base's kernels and batch norm, and keeps the
result; `predict(images)` computes with it. Nothing but LiteRT runs on the device.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskPack

from .device_file import (
    Signatures,
    count_classes,
    export_device,
    head_probabilities,
    head_specs,
    images_spec,
)
from .device_network import DeviceNetwork


def export_switch(
    backbone: Backbone, packs: Iterable[TaskPack], output: Path, *, max_classes: int | None, float16: bool
) -> list[Path]:
    """Writes `model.tflite` with the signatures `set_task`, `predict`, and a `<task>.inputs.safetensors` for each task.

    Before the first `set_task` all classes are equally probable. See `export_device` for arguments and errors.
    """
    return export_device(make_switch, "switch", backbone, packs, output, max_classes=max_classes, float16=float16)


def make_switch(network: DeviceNetwork) -> tuple[tf.Module, Signatures]:
    """Returns a module whose variables are what tasks change, and its signatures by name."""
    layout, module = network.layout, tf.Module()
    # They begin as the kernels that `set_task` multiplies: the file then holds those only once.
    module.weights = [tf.Variable(value, trainable=False) for value in network.base_values()]
    module.head = tf.Variable(np.zeros([layout.features, layout.classes], np.float32), trainable=False)
    module.bias = tf.Variable(np.zeros([layout.classes], np.float32), trainable=False)

    def set_task(head: tf.Tensor, bias: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = network.values(inputs.get("mask"), inputs.get("norm"))
        for variable, value in zip([*module.weights, module.head, module.bias], [*values, head, bias], strict=True):
            variable.assign(value)
        # A signature has to return something.
        return {"classes": count_classes(bias)}

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        features = network.features([variable.value() for variable in module.weights], images)
        return {"probabilities": head_probabilities(images, features, module.head.value(), module.bias.value())}

    module.set_task = tf.function(set_task, autograph=False)
    module.predict = tf.function(predict, autograph=False)
    return module, {
        "set_task": module.set_task.get_concrete_function(**head_specs(network)),
        "predict": module.predict.get_concrete_function(images_spec(network)),
    }
