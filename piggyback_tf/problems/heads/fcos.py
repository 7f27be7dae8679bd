"""A head for boxes without anchors, after FCOS (Tian et al., ICCV 2019), on one feature map.

Each place of a feature map is a point of the image. Of each point the head says how sure it is, class by class, that
the point is near the middle of an object, and how far the sides of that object's box are.

FCOS asks five maps, for objects of five ranges of sizes. Here one map is asked, of stride 8 where the network has one:
the finest of the light pyramid of `fpn`, into which the coarser ones were added. So nothing is computed twice with the
same weights, and each batch norm folds into the one convolution before it. Two branches follow it, one for the classes
and one for the sides, of two separable convolutions each.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_container
from piggyback_tf.backbones.endpoints import Endpoint
from piggyback_tf.head_spec import HeadSpec, padded_shape
from piggyback_tf.problems.heads.fpn import fpn_network, normed, pyramid, separable
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, Head
from piggyback_tf.problems.heads.start import HeadStart

# Of the map that is asked: a finer endpoint is left out where there is this one or a coarser one.
STRIDE = 8
# Of a point, behind its classes: how far up, left, down and right the sides of its box are.
SIDES = 4
_DEPTH = 2
# How sure a new head is that a point belongs to an object of a class (Lin et al., ICCV 2017, section 3.3): most do not.
PRIOR = 0.01


def fcos(spec: HeadSpec, tensors: Sequence[keras.KerasTensor], start: HeadStart) -> keras.KerasTensor:
    """Returns what a model named `"head"` says of each point, float32 `[B, h, w, C + 4]`.

    First a logit of each class, then a number for each of `SIDES`; see `Detection`.

    Args:
        spec: Which head.
        tensors: Endpoints `[B, h, w, c]`, the finest first.
        start: How it starts.
    """
    layers, inputs = keras.layers, [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in tensors]
    found, seeds = pyramid(spec, inputs, start), iter(range(3 * len(inputs), 3 * len(inputs) + 4 * _DEPTH))

    def branch(name: str) -> keras.KerasTensor:
        x = found
        for place in range(_DEPTH):
            kernels = {f"{kind}_initializer": start.of_layer(next(seeds)) for kind in ("depthwise", "pointwise")}
            x = normed(x, separable(spec.width, f"{name}_{place}", kernels))
        if start.dropout:
            x = layers.SpatialDropout2D(start.dropout, seed=start.seed, name=f"{name}_dropout")(x)
        return x

    rare = keras.initializers.Constant(-math.log((1 - PRIOR) / PRIOR))
    kernel = {"kernel_initializer": start.of_logits, "dtype": "float32"}
    classes = layers.Conv2D(spec.classes, 1, bias_initializer=rare, name="class_logits", **kernel)(branch("classes"))
    sides = layers.Conv2D(SIDES, 1, name="sides_logits", **kernel)(branch("sides"))
    points = layers.Concatenate(dtype="float32", name="points")([classes, sides])
    return keras.Model(inputs, points, name=HEAD_NAME)(list(tensors))


def fcos_network(backbone: Backbone, spec: HeadSpec) -> tuple[keras.Model, tuple[Endpoint, ...]]:
    """Returns a network for images of a size, and the endpoints of `fpn_network` from `STRIDE` on, or the coarsest.

    Raises:
        ValueError: As `fpn_network`.
    """
    model, endpoints = fpn_network(backbone, spec)
    return model, tuple(each for each in endpoints if each.stride >= STRIDE) or endpoints[-1:]


def read_fcos(layer: keras.Layer, image_shape: tuple[int, int]) -> HeadSpec | None:
    """Returns the spec of a model that `fcos` has made."""
    if not is_container(layer) or "class_logits" not in {own.name for own in layer.layers}:
        return None
    return HeadSpec("fcos", layer.get_layer("class_logits").filters, layer.get_layer("lateral_0").filters, image_shape)


def stride_of(size: tuple[int, int], image_shape: tuple[int, int]) -> tuple[float, float]:
    """Returns how many pixels are from a point to the next, down and to the right.

    Args:
        size: How many points there are, in columns and in rows.
        image_shape: `(height, width)` of the images.
    """
    height, width = padded_shape(image_shape)
    return height / size[0], width / size[1]


def distances(numbers: tf.Tensor, stride: tuple[float, float]) -> tf.Tensor:
    """Returns how far the sides of boxes are from their points, in pixels.

    A number `x` stands for `elu(x) + 1` strides: `x + 1` from 0 on, and `exp(x)` below, so that a distance is never 0,
    and always has a gradient.

    Args:
        numbers: What the head says of `SIDES`, float32 `[..., 4]`.
        stride: As of `stride_of`.
    """
    return (tf.nn.elu(numbers) + 1.0) * np.array([*stride, *stride], np.float32)


def fcos_answers(parts: Sequence[tf.Tensor], spec: HeadSpec) -> dict[str, tf.Tensor]:
    """Returns what devices choose boxes by.

    Args:
        parts: Logits of the classes, float32 `[B, h, w, C]`, and numbers of `SIDES`, `[B, h, w, 4]`.
        spec: The head.

    Returns:
        `"scores"`, float32 `[B, h, w, C]`, and `"sides"`, float32 `[B, h, w, 4]`: see `distances`.
    """
    classes, sides = parts
    assert spec.image_shape is not None, "boxes are in images of a size"
    return {
        "scores": tf.sigmoid(classes),
        "sides": distances(sides, stride_of((sides.shape[1], sides.shape[2]), spec.image_shape)),
    }


HEADS.register("fcos")(
    Head(
        fcos,
        read_fcos,
        fcos_network,
        fewest_classes=1,
        parts=("class_logits", "sides_logits"),
        answers=fcos_answers,
    )
)
