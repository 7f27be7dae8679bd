"""LoRA: a matrix of low rank is added to each frozen kernel (Hu et al., ICLR 2022; arXiv 2106.09685).

A kernel W, seen as a matrix `[inputs of a filter, filters]`, becomes `W' = W + (alpha / r) A B` (section 4.1) with A
`[inputs of a filter, r]` and B `[r, filters]`. A starts at random and B at 0, so that the network starts as the base.
As in the authors' code, A starts uniform in `1 / sqrt(inputs of a filter)`.

A convolution's kernel `[height, width, in, out]` is seen as the matrix `[height * width * in, out]`. That is a
convolution with r filters of the same size, and a 1x1 convolution of what it gives, as in PEFT and in Keras'
`enable_lora`. A 1x1 convolution is then what a Dense layer is. Of a grouped convolution, all groups share A. A
transposed convolution's kernel has its inputs last, `[height, width, out, in]`, and is divided there. Of a separable
convolution, the 1x1 part is changed. Depthwise kernels stay those of the base: each of their filters has one input
channel, and a product would have more numbers than the kernel. Biases and batch norm are the base's.

Keras' own `enable_lora` is not used. It makes the kernel trainable, too; in a frozen layer it trains nothing and does
not say so; and a saved layer comes back with A B added to its kernel and both factors 0, of which neither gets a
gradient.

`merge` adds A B to the kernels, and a task takes as long as the base.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.settings.methods.lora import LoRAConfig
from piggyback_tf.surgery import FrozenKernels, copy_layers, derived_layers, generator, share_variables

# Which kernel of a layer gets a change, for each kind of layer that has one.
CHANGED: dict[type[keras.Layer], str] = {
    keras.layers.Dense: "kernel",
    keras.layers.Conv2D: "kernel",
    keras.layers.Conv2DTranspose: "kernel",
    keras.layers.SeparableConv2D: "pointwise_kernel",
}


class LowRankKernel(FrozenKernels):
    """Computes with a frozen kernel to which `(alpha / r) A B` is added.

    Args:
        *args: As for the Keras layer.
        factor_rank: The rank r; the smaller side of the kernel, seen as a matrix, if that is less.
        factor_alpha: What is added is multiplied by `factor_alpha / factor_rank`.
        **kwargs: As for the Keras layer.
    """

    def __init__(self, *args: Any, factor_rank: int = 4, factor_alpha: float = 4.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.factor_rank, self.factor_alpha = factor_rank, factor_alpha
        self._changed = next(name for kind, name in CHANGED.items() if isinstance(self, kind))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        shape = getattr(self, f"_{self._changed}").shape
        rank = min(self.factor_rank, math.prod(shape[:-1]), shape[-1])
        self._down = self.add_learned_weight("down", (*shape[:-1], rank))
        self._up = self.add_learned_weight("up", (rank, shape[-1]))

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the frozen kernel plus the product of the factors."""
        up = getattr(self, "_up", None)
        if weight != self._changed or up is None:  # Keras' `build` may look at the kernel before the factors are there.
            return kernel
        down = tf.reshape(tf.convert_to_tensor(self._down.value), [-1, up.shape[0]])
        added = tf.matmul(down, tf.convert_to_tensor(up.value) * (self.factor_alpha / self.factor_rank))
        return kernel + tf.cast(tf.reshape(added, kernel.shape), kernel.dtype)

    def initialise(self, seed: int, path: str) -> None:
        """Gives A its random start.

        Args:
            seed: Seed of it.
            path: What tells this layer from others with the same seed.
        """
        limit = 1 / math.sqrt(math.prod(self._down.shape[:-1]))
        random = generator(seed, f"{path}/down")
        self._down.assign(random.uniform(-limit, limit, self._down.shape).astype(np.float32))

    def learned_parts(self) -> dict[str, np.ndarray]:
        factor = np.float32(self.factor_alpha / self.factor_rank)
        return {f"down/{self._changed}": self._down.numpy(), f"up/{self._changed}": self._up.numpy() * factor}

    @property
    def part_variables(self) -> list[keras.Variable]:
        return [self._down, self._up]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "factor_rank": self.factor_rank, "factor_alpha": self.factor_alpha}


LOW_RANK_LAYERS = derived_layers(LowRankKernel, "LowRank", CHANGED)


@METHODS.register("lora")
class LoRA(Method):
    """Learns changes of low rank of the kernels of the frozen backbone, and the head."""

    Config = LoRAConfig
    config: LoRAConfig

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        paths = {id(layer): path for path, layer in named_layers(backbone.model)}
        settings = {"factor_rank": self.config.lora_rank, "factor_alpha": self.config.lora_alpha, "trainable": True}

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if type(layer) in LOW_RANK_LAYERS:
                return LOW_RANK_LAYERS[type(layer)], settings
            return type(layer), {"trainable": False}

        model, copies = copy_layers(backbone.model, settings_of)
        if not any(isinstance(copy, LowRankKernel) for copy, _ in copies):
            raise ValueError(
                f"Backbone {backbone.name!r} has no kernel that LoRA could change: it changes those of "
                f"{', '.join(kind.__name__ for kind in CHANGED)}."
            )
        for copy, layer in copies:
            share_variables(copy, layer)
            if isinstance(copy, LowRankKernel):
                copy.initialise(seed, paths[id(layer)])
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        return "adapter" if isinstance(layer, LowRankKernel) else super().variable_group(path, layer)
