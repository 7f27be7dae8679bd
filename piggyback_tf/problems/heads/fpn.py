"""A light feature pyramid for an answer at each pixel, on any network.

The endpoints of strides 4, 8, 16 and 32 (those that there are) become feature maps of `width` channels, from the
coarsest on each is enlarged and added to the next finer one, and a 3x3 convolution follows (Lin et al., CVPR 2017); the
finest map gives the logits (Kirillov et al., CVPR 2019). Here the 3x3 convolutions are separable, and
batch norm follows each, which folds into the convolution where a model is exported.
"""

from collections.abc import Mapping, Sequence

import keras

from piggyback_tf.backbones import Backbone, is_container
from piggyback_tf.backbones.endpoints import Endpoint, find_endpoints
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, Head, cropped
from piggyback_tf.problems.heads.start import HeadStart
from piggyback_tf.surgery import for_image_shape

FINEST_STRIDE = 4
# Of the statistics of batch norm: a data set of segments has few batches.
_MOMENTUM = 0.9


def fpn(spec: HeadSpec, tensors: Sequence[keras.KerasTensor], start: HeadStart) -> keras.KerasTensor:
    """Returns float32 logits `[B, H, W, C]` of a model named `"head"`, at the size of the images.

    Args:
        spec: Which head.
        tensors: Endpoints `[B, h, w, c]`, the finest first.
        start: How it starts.
    """
    inputs = [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in tensors]
    found, layers = pyramid(spec, inputs, start), keras.layers
    if start.dropout:
        found = layers.SpatialDropout2D(start.dropout, seed=start.seed, name="dropout")(found)
    logits = layers.Conv2D(spec.classes, 1, kernel_initializer=start.of_logits, dtype="float32", name="logits")(found)
    logits = cropped(_enlarged(logits, spec.padded_shape), spec)
    return keras.Model(inputs, logits, name=HEAD_NAME)(list(tensors))


def pyramid(spec: HeadSpec, inputs: Sequence[keras.KerasTensor], start: HeadStart) -> keras.KerasTensor:
    """Returns the finest map of a pyramid, `[B, h, w, width]` of the size of the finest endpoint.

    Args:
        spec: Which head; its `width` counts.
        inputs: Endpoints `[B, h, w, c]`, the finest first.
        start: How it starts. Its layers take the numbers below `3 * len(inputs)`.
    """
    layers, seeds = keras.layers, iter(range(3 * len(inputs)))

    def initializers(*names: str) -> dict[str, keras.initializers.Initializer]:
        return {f"{name}_initializer": start.of_layer(next(seeds)) for name in names}

    found = None
    for level in reversed(range(len(inputs))):
        lateral = layers.Conv2D(spec.width, 1, use_bias=False, name=f"lateral_{level}", **initializers("kernel"))
        finer = normed(inputs[level], lateral)
        if found is not None:
            # Sizes need not halve: the coarser map gets that of the finer one.
            found = _enlarged(found, finer.shape[1:3])
            found = layers.Add(name=f"sum_{level}")([finer, found])
            kernels = initializers("depthwise", "pointwise")
            finer = normed(found, separable(spec.width, f"smooth_{level}", kernels))
        found = finer
    return found


def separable(
    width: int, name: str, initializers: Mapping[str, keras.initializers.Initializer]
) -> keras.layers.SeparableConv2D:
    """Returns a separable 3x3 convolution without a bias, for batch norm to follow."""
    return keras.layers.SeparableConv2D(width, 3, padding="same", use_bias=False, name=name, **initializers)


def normed(x: keras.KerasTensor, layer: keras.layers.Layer) -> keras.KerasTensor:
    """Returns what a layer, batch norm and a ReLU make of a feature map."""
    x = keras.layers.BatchNormalization(momentum=_MOMENTUM, name=f"{layer.name}_norm")(layer(x))
    return keras.layers.ReLU(name=f"{layer.name}_relu")(x)


def _enlarged(tensor: keras.KerasTensor, shape: tuple[int, int]) -> keras.KerasTensor:
    """Returns a feature map at another size, by bilinear interpolation.

    Not by Keras' layer Resizing: whoever calls a model without saying whether it is trained would have all layers after
    it, batch norm too, in training mode, which is what that layer takes for granted.
    """
    return keras.ops.image.resize(tensor, shape, interpolation="bilinear")


def fpn_network(backbone: Backbone, spec: HeadSpec) -> tuple[keras.Model, tuple[Endpoint, ...]]:
    """Returns a network for images of a size, and its endpoints of strides from 4.

    Raises:
        ValueError: If the network cannot take such images, or has no such endpoints.
    """
    assert spec.image_shape is not None, "a pyramid has the size of its images"
    model = for_image_shape(backbone.model, spec.image_shape)
    found = find_endpoints(model, backbone.endpoints)
    endpoints = tuple(each for each in found if each.stride >= FINEST_STRIDE)
    if not endpoints:
        raise ValueError(
            f"Backbone {backbone.name!r} has no feature map of stride {FINEST_STRIDE} or more that all of its paths "
            "pass, on which a head for pixels could be built."
        )
    return model, endpoints


def read_fpn(layer: keras.Layer, image_shape: tuple[int, int]) -> HeadSpec | None:
    """Returns the spec of a model that `fpn` has made."""
    if not is_container(layer) or not {"logits", "lateral_0"} <= {own.name for own in layer.layers}:
        return None
    lateral, logits = layer.get_layer("lateral_0"), layer.get_layer("logits")
    return HeadSpec("fpn", logits.filters, lateral.filters, image_shape)


HEADS.register("fpn")(Head(fpn, read_fpn, fpn_network))
