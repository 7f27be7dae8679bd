"""Deep Adaptation Networks: filters of a task are linear combinations of the base's (Rosenfeld and Tsotsos, TPAMI 42,
2020; arXiv 1705.04228).

With the filters of a layer as the rows of a matrix W, `[output channels, weights of a filter]`, a task computes with
`W' = D W` (section 3), where D is a square matrix of its own, `[output channels, output channels]`. The network starts
with D at the identity plus a little noise on its diagonal, as in the reference implementation; learned and kept is
`D - I`, so that without noise it starts as the base whatever the rounding. Biases, batch norm and the head are the
task's own; all else is the base's.

Where a filter has no more weights than there are filters, D would be as large as W or larger, and (if W has full rank)
could make any kernel of it. There the task learns a kernel of its own, which is the same with fewer numbers. This
concerns 1x1 convolutions that do not reduce the channels (the expansions of MobileNetV2, the last of each block of
ResNet-50), depthwise ones and the first convolution of some networks.

The reference implementation trains with SGD at 0.1 with momentum and batches of 128; in proportion, the rate is 0.025
for the batches of 32 here. Its weight decay is left out, and batch norm has the base's statistics unless
`norm_statistics="task"`, which is the paper's.
"""

import math
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, copy_weights, is_batch_norm, named_layers
from piggyback_tf.methods.base import METHODS, Method, trained_norm
from piggyback_tf.settings.methods.dan import DANConfig
from piggyback_tf.surgery import OwnBias, copy_layers, derived_layers, foreign_kernels, generator, share_variables

# How many of a kernel's last axes number its filters, for each kind of layer.
OUTPUT_AXES: dict[type[keras.Layer], int] = {
    keras.layers.Dense: 1,
    keras.layers.Conv2D: 1,
    keras.layers.DepthwiseConv2D: 2,
}


class MixedKernel(OwnBias):
    """Computes with linear combinations `W + mixing W` of the filters of a frozen kernel; the bias is trained too."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._mixing = self.add_learned_weight("mixing", [count_filters(self, self._kernel.shape)] * 2)

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the kernel plus its filters' combinations."""
        mixing = getattr(self, "_mixing", None)
        if mixing is None:  # Keras' `build` may look at the kernel before the mixing is there.
            return kernel
        mixing = tf.cast(tf.convert_to_tensor(mixing.value), kernel.dtype)
        filters = tf.reshape(kernel, [-1, mixing.shape[0]])  # The columns are the filters.
        return kernel + tf.reshape(tf.matmul(filters, mixing, transpose_b=True), kernel.shape)

    def initialise_mixing(self, noise: float, seed: int, path: str) -> None:
        """Puts noise on the diagonal of D, of the standard deviation `noise / output channels`.

        Args:
            noise: Its size.
            seed: Seed of the noise.
            path: What tells this layer from others with the same seed.
        """
        count = self._mixing.shape[0]
        diagonal = generator(seed, f"{path}/mixing").standard_normal(count) * noise / count
        self._mixing.assign(np.diag(diagonal).astype(np.float32))


MIXED_LAYERS = derived_layers(MixedKernel, "Mixed", OUTPUT_AXES)


@METHODS.register("dan")
class DAN(Method):
    """Learns how to combine the filters of each layer of the frozen backbone, biases, batch norm, and the head."""

    Config = DANConfig
    config: DANConfig
    makes_pack = False

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        paths = {id(layer): path for path, layer in named_layers(backbone.model)}
        if foreign := foreign_kernels(dict(named_layers(backbone.model)), OUTPUT_AXES):
            raise ValueError(
                f"These layers have kernels whose filters DAN cannot combine: {foreign}. It combines those of "
                f"{', '.join(kind.__name__ for kind in OUTPUT_AXES)}; use another backbone, or another method, such as "
                "piggyback."
            )

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if is_batch_norm(layer):
                return trained_norm(self.config).settings_of(layer)
            if type(layer) not in OUTPUT_AXES:
                return type(layer), {"trainable": False}
            return MIXED_LAYERS[type(layer)] if is_mixed(layer) else type(layer), {"trainable": True}

        model, copies = copy_layers(backbone.model, settings_of)
        for copy, layer in copies:
            if isinstance(copy, MixedKernel):
                share_variables(copy, layer, own=["bias"])
                copy.initialise_mixing(self.config.dan_noise, seed, paths[id(layer)])
            elif is_batch_norm(layer):
                share_variables(copy, layer, own=trained_norm(self.config).trained_weights)
            elif copy.trainable:
                copy_weights(layer, copy)
            else:
                share_variables(copy, layer)
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        return "adapter" if isinstance(layer, MixedKernel) else super().variable_group(path, layer)


def count_filters(layer: keras.Layer, shape: Iterable[int]) -> int:
    """Returns how many filters a layer's kernel of some shape consists of."""
    axes = next(axes for kind, axes in OUTPUT_AXES.items() if isinstance(layer, kind))
    return math.prod(tuple(shape)[-axes:])


def is_mixed(layer: keras.Layer) -> bool:
    """Whether the filters of a layer are combined: they have more weights each than there are filters."""
    shape: Any = layer.kernel.shape
    return math.prod(shape) > count_filters(layer, shape) ** 2
