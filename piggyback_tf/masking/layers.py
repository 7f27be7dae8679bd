"""Keras layers whose kernels are frozen and seen through a trainable mask.

Each class stands for the Keras layer of the same name without "Masked" and takes the same arguments. Keras' own
`call` stays as it is: the kernel attribute it reads is a property here, which returns the masked kernel.
"""

import dataclasses
import hashlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.masking.config import MaskConfig
from piggyback_tf.masking.threshold import binarise, masked_kernel, ternarise

_PACKAGE = "piggyback_tf"


def mask_variable_name(weight: str) -> str:
    """Returns the name of the mask of a weight: `mask_real`, `depthwise_mask_real`, `pointwise_mask_real`."""
    return weight.replace("kernel", "mask_real")


def _masked_weight(weight: str) -> property:
    """Returns a property that reads as the masked weight and is set with the frozen variable."""

    def get(layer: "MaskedLayer") -> tf.Tensor:
        mask_real = layer.mask_variables.get(weight)
        kernel = tf.convert_to_tensor(layer.frozen_weight(weight).value)
        if mask_real is None:  # Keras' `build` may look at the kernel before the mask is there.
            return kernel
        config = layer.mask_config
        return masked_kernel(
            kernel,
            tf.convert_to_tensor(mask_real.value),
            threshold=config.threshold,
            kind=config.kind,
            gradient_scaling=config.gradient_scaling,
        )

    def set_(layer: "MaskedLayer", variable: keras.Variable) -> None:
        setattr(layer, f"_{weight}", variable)

    return property(get, set_, doc=f"The masked `{weight}`: frozen weights where the mask is not 0, else 0.")


class MaskedLayer:
    """What all masked layers share; comes before the Keras layer in the bases of a class.

    The layer's own weights (kernel, bias) are not trainable; `mask_real`, float32 and of the kernel's shape whatever
    the dtype policy, is.

    Args:
        *args: As for the Keras layer.
        mask: A `MaskConfig`, or a dict of its fields, or None for the defaults.
        **kwargs: As for the Keras layer.
    """

    MASKED_WEIGHTS: tuple[str, ...] = ("kernel",)

    def __init__(self, *args: Any, mask: MaskConfig | dict | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.mask_config = mask if isinstance(mask, MaskConfig) else MaskConfig(**(mask or {}))

    @property
    def mask_variables(self) -> dict[str, keras.Variable]:
        """The real-valued masks by the name of the weight they belong to; empty before the layer is built."""
        names = {weight: f"_{mask_variable_name(weight)}" for weight in self.MASKED_WEIGHTS}
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

    def add_weight(self, *args: Any, trainable: bool = True, **kwargs: Any) -> keras.Variable:
        # Everything the Keras layer creates belongs to the frozen network; `build` adds the masks past this method.
        return super().add_weight(*args, trainable=False, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        for weight in self.MASKED_WEIGHTS:
            mask_real = super().add_weight(
                shape=self.frozen_weight(weight).shape,
                initializer="zeros",
                dtype="float32",
                # A threshold at 5e-3 and steps of 1e-4 do not survive the rounding of half precision.
                autocast=False,
                name=mask_variable_name(weight),
            )
            setattr(self, f"_{mask_variable_name(weight)}", mask_real)
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
                key = f"{config.seed}/{path or self.name}/{weight}".encode()
                seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little")
                value = np.random.default_rng(seed).uniform(-config.scale, config.scale, mask_real.shape)
            mask_real.assign(value.astype(np.float32))

    def save_own_variables(self, store: Any) -> None:
        # Keras' Dense and convolutions save `self.kernel`, which is the masked kernel here, and no mask.
        for variable in self._own_variables():
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        expected, found = {v.name for v in self._own_variables()}, set(store.keys())
        if expected != found:
            raise ValueError(
                f"Layer {self.name!r} expects the variables {sorted(expected)}; the file holds {sorted(found)}."
            )
        for variable in self._own_variables():
            variable.assign(store[variable.name])

    def _own_variables(self) -> list[keras.Variable]:
        return self._trainable_variables + self._non_trainable_variables

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mask": dataclasses.asdict(self.mask_config)}

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(f"Layer {self.name!r} is masked; LoRA would add to the kernel before the mask is applied.")

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(f"Layer {self.name!r} is masked and cannot be quantised. Bake the mask in first.")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MaskedDense(MaskedLayer, keras.layers.Dense):
    """`keras.layers.Dense` with a mask over its frozen kernel.

    Input shape: `[..., input_dim]`. Output shape: `[..., units]`, both in the dtype of the policy.
    """

    kernel = _masked_weight("kernel")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MaskedConv2D(MaskedLayer, keras.layers.Conv2D):
    """`keras.layers.Conv2D` (strides, padding, dilation, groups) with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]` by `data_format`. Output shape: as of Conv2D.
    """

    kernel = _masked_weight("kernel")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MaskedDepthwiseConv2D(MaskedLayer, keras.layers.DepthwiseConv2D):
    """`keras.layers.DepthwiseConv2D` with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of DepthwiseConv2D.
    """

    kernel = _masked_weight("kernel")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MaskedConv2DTranspose(MaskedLayer, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` with a mask over its frozen kernel.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of Conv2DTranspose.
    """

    kernel = _masked_weight("kernel")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MaskedSeparableConv2D(MaskedLayer, keras.layers.SeparableConv2D):
    """`keras.layers.SeparableConv2D` with a mask over each of its two frozen kernels.

    Input shape: `[B, H, W, C]` or `[B, C, H, W]`. Output shape: as of SeparableConv2D.
    """

    MASKED_WEIGHTS = ("depthwise_kernel", "pointwise_kernel")
    depthwise_kernel = _masked_weight("depthwise_kernel")
    pointwise_kernel = _masked_weight("pointwise_kernel")


# The exact classes that can be masked: a subclass may compute with its kernel in ways of its own.
MASKED_LAYERS: dict[type[keras.Layer], type[MaskedLayer]] = {
    keras.layers.Dense: MaskedDense,
    keras.layers.Conv2D: MaskedConv2D,
    keras.layers.DepthwiseConv2D: MaskedDepthwiseConv2D,
    keras.layers.Conv2DTranspose: MaskedConv2DTranspose,
    keras.layers.SeparableConv2D: MaskedSeparableConv2D,
}
