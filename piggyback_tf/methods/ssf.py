"""SSF: scaling and shifting the features of a frozen network (Lian et al., NeurIPS 2022; arXiv 2210.08823).

Behind each operation with weights, and before its activation, a channel x of the features becomes `gamma x + beta`.
Behind a layer `W x + b` that is a layer with the kernel `gamma W` and the bias `gamma b + beta`, the paper's
re-parameterisation, and that is how it is computed and kept here: with a scale for each channel of a kernel's output,
and a bias of the task. Of a layer of normalisation these are its own gamma and beta. What is learned is the bias
`gamma b + beta` as a whole; the functions are the same. Where a layer has no bias, it gets a scale alone. Scales start
at 1 and shifts at 0, so that the network starts as the base; the authors add noise of 0.02 to both.

On a network with batch norm this would be what batch norm does already, and such a network is refused: `norm_only`
learns that, with half of the numbers.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.backbones.paths import batch_norm_paths
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.settings.methods.ssf import SSFConfig
from piggyback_tf.surgery import KERNELS, OwnBias, copy_layers, derived_layers, share_variables

# Layers of normalisation that have a scale and a shift; batch norm is none of them.
NORMALISATIONS = (keras.layers.LayerNormalization, keras.layers.GroupNormalization)
# Where the output channels are in a kernel, for each kind of layer; of several kernels in the last.
_OUTPUT_AXES: dict[type[keras.Layer], tuple[int, ...]] = {
    keras.layers.Dense: (-1,),
    keras.layers.Conv2D: (-1,),
    keras.layers.DepthwiseConv2D: (-2, -1),
    keras.layers.Conv2DTranspose: (-2,),
    keras.layers.SeparableConv2D: (-1,),
}


def scale_shape(kind: type[keras.Layer], shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the shape of the scales of a kernel: 1 where it is no axis of output channels."""
    axes = {axis % len(shape) for axis in _OUTPUT_AXES[kind]}
    return tuple(side if axis in axes else 1 for axis, side in enumerate(shape))


class ScaledKernel(OwnBias):
    """Computes with a frozen kernel whose output channels have trained scales, and a trained bias."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        kind = next(kind for kind in KERNELS if isinstance(self, kind))
        shape = getattr(self, f"_{self.kernel_names[-1]}").shape
        # What is learned is how much the scales differ from 1.
        self._scale_offset = self.add_learned_weight("scale_offset", scale_shape(kind, shape))

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the frozen kernel times the scales."""
        offset = getattr(self, "_scale_offset", None)
        if weight != self.kernel_names[-1] or offset is None:  # Keras' `build` may look before the scales are there.
            return kernel
        return kernel * tf.cast(1.0 + tf.convert_to_tensor(offset.value), kernel.dtype)

    def learned_parts(self) -> dict[str, np.ndarray]:
        return {f"scale/{self.kernel_names[-1]}": np.float32(1.0) + self._scale_offset.numpy()}

    @property
    def part_variables(self) -> list[keras.Variable]:
        return [self._scale_offset]


SCALED_LAYERS = derived_layers(ScaledKernel, "Scaled", KERNELS)


@METHODS.register("ssf")
class SSF(Method):
    """Learns scales and shifts of the features of the frozen backbone's layers, and the head."""

    Config = SSFConfig
    config: SSFConfig

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        if norms := batch_norm_paths(backbone.model):
            raise ValueError(
                f"Backbone {backbone.name!r} has batch norm, for example {min(norms)!r}, which scales and shifts its "
                "features; a task's own is learned by norm_only."
            )
        if not any(type(layer) in SCALED_LAYERS for _, layer in named_layers(backbone.model)):
            raise ValueError(f"Backbone {backbone.name!r} has no layer with a kernel whose features could be scaled.")

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict[str, Any]]:
            if type(layer) in SCALED_LAYERS:
                return SCALED_LAYERS[type(layer)], {"trainable": True}
            return type(layer), {"trainable": type(layer) in NORMALISATIONS}

        model, copies = copy_layers(backbone.model, settings_of)
        for copy, layer in copies:
            share_variables(copy, layer, own=("bias", "gamma", "beta") if copy.trainable else ())
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        group = super().variable_group(path, layer)
        return "adapter" if group == "weights" else group
