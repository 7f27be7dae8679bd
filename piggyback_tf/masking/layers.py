"""Keras layers whose kernels are frozen and seen through a trainable mask.

Each class stands for the Keras layer of the same name without "Masked" and takes the same arguments.
"""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.masking.threshold import affine_kernel, binarise, masked_kernel, ternarise
from piggyback_tf.settings.masks import MaskConfig
from piggyback_tf.surgery import KERNELS, PACKAGE, FrozenKernels, derived_kernel, generator

# k0, k1, k2 and k3 of a mask that is not affine.
_AFFINE_START = np.array([0, 0, 0, 1], np.float32)


def mask_variable_name(weight: str) -> str:
    """Returns the name of the mask of a weight: `mask_real`, `depthwise_mask_real`, `pointwise_mask_real`."""
    return weight.replace("kernel", "mask_real")


def affine_variable_name(weight: str) -> str:
    """Returns the name of what makes the mask of a weight affine: `affine`, `depthwise_affine`, `pointwise_affine`."""
    return weight.replace("kernel", "affine")


class MaskedLayer(FrozenKernels):
    """What all masked layers share; comes before the Keras layer in the bases of a class.

    The layer's own weights (kernel, bias) are not trainable; `mask_real`, float32 and of the kernel's shape whatever
    the dtype policy, is. So is `affine`, `[4]`, if masks are: by how much k0, k1, k2 and k3 differ from 0, 0, 0 and 1,
    where k1 and k2 are in units of the kernel's mean |W|, so that one rate goes with all.

    Args:
        *args: As for the Keras layer.
        mask: A `MaskConfig`, or a dict of its fields, or None for the defaults.
        **kwargs: As for the Keras layer.
    """

    MASKED_WEIGHTS: tuple[str, ...] = KERNELS[keras.layers.Dense]

    def __init__(self, *args: Any, mask: MaskConfig | dict | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mask_config = mask if isinstance(mask, MaskConfig) else MaskConfig(**(mask or {}))

    @property
    def mask_variables(self) -> dict[str, keras.Variable]:
        """The real-valued masks by the name of the weight they belong to; empty before the layer is built."""
        names = {weight: f"_{mask_variable_name(weight)}" for weight in self.MASKED_WEIGHTS}
        return {weight: getattr(self, name) for weight, name in names.items() if hasattr(self, name)}

    @property
    def affine_variables(self) -> dict[str, keras.Variable]:
        """What makes masks affine by the name of the weight; empty if they are not, and before the layer is built."""
        names = {weight: f"_{affine_variable_name(weight)}" for weight in self.MASKED_WEIGHTS}
        return {weight: getattr(self, name) for weight, name in names.items() if hasattr(self, name)}

    def frozen_weight(self, weight: str) -> keras.Variable:
        """Returns the variable that holds the unmasked weights, for example of `"kernel"`."""
        if weight not in self.MASKED_WEIGHTS:
            raise ValueError(f"Layer {self.name!r} has no masked weight {weight!r}, only {self.MASKED_WEIGHTS}.")
        return getattr(self, f"_{weight}")

    def masks(self) -> dict[str, np.ndarray]:
        """Returns the thresholded masks as int8 arrays by weight name, values {0, 1} or {-1, 0, 1}."""
        threshold = ternarise if self.mask_config.kind == "ternary" else binarise
        return {
            weight: tf.cast(threshold(mask_real.value, self.mask_config.threshold), tf.int8).numpy()
            for weight, mask_real in self.mask_variables.items()
        }

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the masked weights: the frozen ones where the mask is not 0, else 0, unless the mask is affine."""
        mask_real = self.mask_variables.get(weight)
        if mask_real is None:  # Keras' `build` may look at the kernel before the mask is there.
            return kernel
        settings = {name: getattr(self.mask_config, name) for name in ("threshold", "kind", "gradient_scaling")}
        mask = tf.convert_to_tensor(mask_real.value)
        if self.mask_config.affine == "none":
            return masked_kernel(kernel, mask, **settings)
        affine = self.affine_variables.get(weight)
        if affine is None:
            return kernel
        unit = tf.reduce_mean(tf.abs(tf.cast(kernel, tf.float32)))
        numbers = _AFFINE_START + tf.convert_to_tensor(affine.value) * tf.stack([1.0, unit, unit, 1.0])
        return affine_kernel(kernel, mask, numbers, **settings)

    def learned_parts(self) -> dict[str, np.ndarray]:
        found = {}
        for weight, affine in self.affine_variables.items():
            unit = np.abs(keras.ops.convert_to_numpy(self.frozen_weight(weight)).astype(np.float32)).mean()
            found[f"affine/{weight}"] = _AFFINE_START + affine.numpy() * np.array([1, unit, unit, 1], np.float32)
        return found

    @property
    def part_variables(self) -> list[keras.Variable]:
        return list(self.affine_variables.values())

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        for weight in self.MASKED_WEIGHTS:
            mask_real = self.add_learned_weight(mask_variable_name(weight), self.frozen_weight(weight).shape)
            setattr(self, f"_{mask_variable_name(weight)}", mask_real)
            if self.mask_config.affine == "layer":
                affine = self.add_learned_weight(affine_variable_name(weight), (4,))
                setattr(self, f"_{affine_variable_name(weight)}", affine)
        self.initialise_masks()

    def initialise_masks(self, path: str | None = None) -> None:
        """Sets `mask_real` as the config says, from the weights as they are now.

        Args:
            path: What tells this layer from others with the same seed; the layer's name if None.
        """
        config = self.mask_config
        for weight, mask_real in self.mask_variables.items():
            if config.init == "constant":
                value = np.full(mask_real.shape, config.scale, np.float32)
            elif config.init == "magnitude":
                size = np.abs(keras.ops.convert_to_numpy(self.frozen_weight(weight)).astype(np.float32))
                mean = size.mean()
                value = config.scale * size / mean if mean > 0 else np.full_like(size, config.scale)
            else:
                random = generator(config.seed, f"{path or self.name}/{weight}")
                value = random.uniform(-config.scale, config.scale, mask_real.shape)
            mask_real.assign(value.astype(np.float32))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask": dataclasses.asdict(self.mask_config)}


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedDense(MaskedLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a mask over its frozen kernel.

    Input shape: `[..., input_dim]`. Output shape: `[..., units]`, both in the dtype of the policy.
    """

    kernel = derived_kernel("kernel")


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedConv2D(MaskedLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` (strides, padding, dilation, groups) with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]` by `data_format`. Output shape: as of Conv2D.
    """

    kernel = derived_kernel("kernel")


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedDepthwiseConv2D(MaskedLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of DepthwiseConv2D.
    """

    kernel = derived_kernel("kernel")


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedConv2DTranspose(MaskedLayer, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of Conv2DTranspose.
    """

    kernel = derived_kernel("kernel")


@keras.saving.register_keras_serializable(package=PACKAGE)
class MaskedSeparableConv2D(MaskedLayer, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with a mask over each of its two frozen kernels.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of SeparableConv2D.
    """

    MASKED_WEIGHTS = KERNELS[keras.layers.SeparableConv2D]
    depthwise_kernel = derived_kernel("depthwise_kernel")
    pointwise_kernel = derived_kernel("pointwise_kernel")


# The exact classes that can be masked: a subclass may compute with its kernel in ways of its own.
MASKED_LAYERS: dict[type[keras.Layer], type[MaskedLayer]] = {
    keras.layers.Dense: MaskedDense,
    keras.layers.Conv2D: MaskedConv2D,
    keras.layers.DepthwiseConv2D: MaskedDepthwiseConv2D,
    keras.layers.Conv2DTranspose: MaskedConv2DTranspose,
    keras.layers.SeparableConv2D: MaskedSeparableConv2D,
}
