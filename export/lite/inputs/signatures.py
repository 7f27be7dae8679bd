"""The signatures of both designs: what a model of masks as inputs can be asked.

Design `switch` keeps the filters of the current task in variables: `set_task(mask, norm, head, bias)` unpacks the mask,
multiplies it with the base's kernels and batch norm, and keeps the result; `predict(images)` computes with it. Design
`input` keeps nothing: `predict(images, mask, norm, head, bias)` unpacks the mask in each call, which takes longer, and
lets any number of threads and tasks share a file. Nothing but LiteRT runs on the device.
"""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from ...shared.graph import good_images
from ..convert import Signatures
from .network import DeviceNetwork
from .task_inputs import NO_CLASS


def make_switch(network: DeviceNetwork) -> tuple[tf.Module, Signatures]:
    """Returns a module whose variables are what tasks change, and its signatures by name.

    Before the first `set_task` all classes are equally probable.
    """
    format_, module = network.format, tf.Module()
    # They begin as the kernels that `set_task` multiplies: the file then holds those only once.
    module.weights = [tf.Variable(value, trainable=False) for value in network.base_values()]
    module.head = tf.Variable(np.zeros([format_.features, format_.classes], np.float32), trainable=False)
    module.bias = tf.Variable(np.zeros([format_.classes], np.float32), trainable=False)

    def set_task(head: tf.Tensor, bias: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = network.values(inputs.get("mask"), inputs.get("norm"))
        for variable, value in zip([*module.weights, module.head, module.bias], [*values, head, bias], strict=True):
            variable.assign(value)
        # A signature has to return something.
        return {"classes": _count_classes(bias)}

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        features = network.features([variable.value() for variable in module.weights], images)
        return {"probabilities": _head_probabilities(images, features, module.head.value(), module.bias.value())}

    module.set_task = tf.function(set_task, autograph=False)
    module.predict = tf.function(predict, autograph=False)
    return module, {
        "set_task": module.set_task.get_concrete_function(**_head_specs(network)),
        "predict": module.predict.get_concrete_function(_images_spec(network)),
    }


def make_input(network: DeviceNetwork) -> tuple[tf.Module, Signatures]:
    """Returns a module without variables, and its signature."""

    def predict(images: tf.Tensor, head: tf.Tensor, bias: tf.Tensor, **inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        values = network.values(inputs.get("mask"), inputs.get("norm"))
        return {"probabilities": _head_probabilities(images, network.features(values, images), head, bias)}

    module = tf.Module()
    module.predict = tf.function(predict, autograph=False)
    return module, {"predict": module.predict.get_concrete_function(_images_spec(network), **_head_specs(network))}


# What makes the module of a design.
MODULE_MAKERS: Mapping[str, Callable[[DeviceNetwork], tuple[tf.Module, Signatures]]] = {
    "switch": make_switch,
    "input": make_input,
}


def _head_probabilities(images: tf.Tensor, features: tf.Tensor, head: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns the softmax over the logits of a head, `[1, C]`; zeros if the images are not numbers in [0, 255]."""
    # A product of rank 3 is one that XNNPACK takes; see `layers.py`.
    found = tf.nn.softmax(tf.matmul(features[None], head[None])[0] + bias)
    return tf.where(good_images(images)[:, None], found, 0.0)


def _head_specs(network: DeviceNetwork) -> dict[str, tf.TensorSpec]:
    """Returns what a task hands over, by name; without `mask` and `norm` if all tasks have those of the base."""
    format_ = network.format
    specs = {
        "mask": tf.TensorSpec([format_.mask_bytes], tf.uint8, "mask"),
        "norm": tf.TensorSpec([format_.norm_length], tf.float32, "norm"),
        "head": tf.TensorSpec([format_.features, format_.classes], tf.float32, "head"),
        "bias": tf.TensorSpec([format_.classes], tf.float32, "bias"),
    }
    return {name: spec for name, spec in specs.items() if spec.shape.num_elements()}


def _images_spec(network: DeviceNetwork) -> tf.TensorSpec:
    """Returns what images are: float32 `[1, S, S, 3]` in [0, 255]."""
    size = network.format.image_size
    return tf.TensorSpec([1, size, size, 3], tf.float32, "images")


def _count_classes(bias: tf.Tensor) -> tf.Tensor:
    """Returns how many classes the head of a task has, int32 `[1]`."""
    return tf.reduce_sum(tf.cast(bias > NO_CLASS / 2, tf.int32), axis=0, keepdims=True)
