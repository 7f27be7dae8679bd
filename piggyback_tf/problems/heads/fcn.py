"""Fully convolutional heads for VGG: FCN-32s, FCN-16s and FCN-8s (Long, Shelhamer and Darrell, CVPR 2015).

The fully connected layers of the network are seen as convolutions, fc1 as one of 7x7 and fc2 as one of 1x1, over the
same kernels. A 1x1 convolution makes scores of classes of them, at stride 32. FCN-32s enlarges these 32 times. FCN-16s
enlarges them twice, adds scores of `block4_pool`, and enlarges the sum 16 times; FCN-8s does the same again with
`block3_pool`, and then 8 times.

All is enlarged by transposed convolutions with fixed bilinear kernels, which are no part of a task. Three things are
otherwise than in the paper. It learns the first enlargements, which start as bilinear. It gives images a border of 100
pixels; here the feature map in front of fc1 has one of 3 places, of zeros. And it trains one head after the other, each
from the one before; here all scores are learned at once, those of the finer maps on features that are multiplied by
0.01 and 0.0001 (Shelhamer, Long and Darrell, PAMI 2017): they are that much larger.
"""

from collections.abc import Sequence

import keras

from piggyback_tf.backbones import Backbone, canonical_names, is_container
from piggyback_tf.backbones.endpoints import Endpoint, layer_endpoint
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, Head, cropped
from piggyback_tf.problems.heads.start import HeadStart
from piggyback_tf.surgery import for_image_shape

# By kind of head the layers of the network whose features are added, the coarsest first, with what they are multiplied
# by.
SKIPS = {
    "fcn32": (),
    "fcn16": (("block4_pool", 1e-2),),
    "fcn8": (("block4_pool", 1e-2), ("block3_pool", 1e-4)),
}
_STRIDE = 32


def fcn(spec: HeadSpec, tensors: Sequence[keras.KerasTensor], start: HeadStart) -> keras.KerasTensor:
    """Returns float32 logits `[B, H, W, C]` of a model named `"head"`, at the size of the images.

    Args:
        spec: Which head.
        tensors: What `fcn_network` says, the finest first.
        start: How it starts.
    """
    layers, inputs = keras.layers, [keras.Input(tensor.shape[1:], dtype=tensor.dtype) for tensor in tensors]

    def scores(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.Conv2D(spec.classes, 1, kernel_initializer=start.of_logits, dtype="float32", name=name)(x)

    found = inputs[-1]
    if start.dropout:
        found = layers.SpatialDropout2D(start.dropout, seed=start.seed, name="dropout")(found)
    found, stride = scores(found, "logits"), _STRIDE
    for finer, (layer, factor) in zip(reversed(inputs[:-1]), SKIPS[spec.kind], strict=True):
        smaller = layers.Rescaling(factor, dtype="float32", name=f"{layer}_scaled")(finer)
        found, stride = enlarged(found, 2, f"{layer}_coarser"), stride // 2
        found = layers.Add(dtype="float32", name=f"{layer}_sum")([found, scores(smaller, f"{layer}_logits")])
    logits = cropped(enlarged(found, stride, "enlarged"), spec)
    return keras.Model(inputs, logits, name=HEAD_NAME)(list(tensors))


def enlarged(scores: keras.KerasTensor, factor: int, name: str) -> keras.KerasTensor:
    """Returns a feature map that is some times larger: a transposed convolution with a fixed bilinear kernel.

    Such a kernel interpolates, with zeros beyond the border, and so it is computed: without a kernel.

    Args:
        scores: `[B, h, w, C]`.
        factor: How many times.
        name: Of the layers.
    """
    layers = keras.layers
    bordered = layers.ZeroPadding2D(1, dtype="float32", name=f"{name}_border")(scores)
    large = layers.UpSampling2D(factor, interpolation="bilinear", dtype="float32", name=name)(bordered)
    return layers.Cropping2D(factor, dtype="float32", name=f"{name}_crop")(large)


def fcn_network(backbone: Backbone, spec: HeadSpec) -> tuple[keras.Model, tuple[Endpoint, ...]]:
    """Returns a VGG whose fully connected layers slide over the feature map, and the feature maps of a head.

    Raises:
        ValueError: If the network is no such VGG, or cannot take images of that size.
    """
    assert spec.image_shape is not None, "a head for pixels has the size of its images"
    model = for_image_shape(backbone.model, spec.image_shape, slide=True)
    last = canonical_names(model)[id(model.layers[-1])]
    names = [*(layer for layer, _ in reversed(SKIPS[spec.kind])), last]
    found = [layer_endpoint(model, name) for name in names]
    strides = [_STRIDE // 2 ** (len(names) - 1 - place) for place in range(len(names))]
    endpoints = tuple(each for each, stride in zip(found, strides, strict=True) if each and each.stride == stride)
    if len(endpoints) < len(names):
        raise ValueError(
            f"Head {spec.kind!r} builds on {', '.join(names)} with strides {', '.join(map(str, strides))}, as vgg16 "
            f"and vgg19 have them, and backbone {backbone.name!r} has not."
        )
    return model, endpoints


def read_fcn(layer: keras.Layer, image_shape: tuple[int, int]) -> HeadSpec | None:
    """Returns the spec of a model that `fcn` has made."""
    if not is_container(layer):
        return None
    names = {own.name for own in layer.layers}
    for kind, skips in reversed(SKIPS.items()):
        if {"logits", *(f"{name}_logits" for name, _ in skips)} <= names and "lateral_0" not in names:
            return HeadSpec(kind, layer.get_layer("logits").filters, 0, image_shape)
    return None


_FCN = Head(fcn, read_fcn, fcn_network)
for _kind in SKIPS:
    HEADS.register(_kind)(_FCN)
