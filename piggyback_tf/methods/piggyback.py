"""Piggyback: one mask over the frozen weights per task (Mallya, Davis, Lazebnik, ECCV 2018, section 3).

Beyond the paper, masks can start as those of another task (`init_from`), and weights can have a price for being dropped
(`sparsity_weight`): with D of the N masked weights not used as they are, the loss has the term

    sparsity_weight * D / N

whose gradient passes the threshold like that of the loss itself. A weight is then only dropped for good if that lowers
the loss by more than `sparsity_weight / N`, as far as its gradient tells.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import MaskConfig, MaskStart, mask, masked_weights, start_masks
from piggyback_tf.masking.threshold import count_dropped
from piggyback_tf.methods.base import METHODS, Method, NormConfig, option
from piggyback_tf.methods.memory import Memory
from piggyback_tf.methods.penalty import PenalisedModel

AUTO = "auto"  # Of `init_from`: the best of the tasks learned before; followed by `:`, the best of some packs.


@dataclasses.dataclass(frozen=True)
class PiggybackConfig(NormConfig):
    """Settings of the masks; the defaults are the paper's, but for `norm_statistics`."""

    mask_kind: str = option("binary", "binary: masks in {0, 1}; ternary: {-1, 0, 1}.")
    mask_threshold: float = option(5e-3, "tau of equation 4: mask_real >= tau is used.")
    mask_init: str = option(
        "constant", "Start of mask_real. constant: mask_scale; magnitude: in proportion to |W|; uniform: random."
    )
    mask_scale: float = option(1e-2, "Size of mask_real at the start.")
    mask_gradient_scaling: str = option(
        "none", "none: dE/dW' * W; average: divided by the layer's mean |W|; individual: divided by each |W|."
    )
    mask_include: str = option("*", "Comma-separated patterns of layer paths that get a mask.")
    mask_exclude: str = option("", "Comma-separated patterns of layer paths that get none.")
    norm: str = option("frozen", "Batch norm of the backbone. frozen: as it is; task: trained for each task.")
    init_from: str = option("", "Start as the masks of PACK; auto:PACKS or, with --tasks, auto: of the best or none.")
    sparsity_weight: float = option(0.0, "Price in the loss of dropping all weights.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sparsity_weight < 0:
            raise ValueError(f"`sparsity_weight` must be 0 or more. Received: sparsity_weight={self.sparsity_weight}.")
        if (self.sparsity_weight or self.init_from) and self.mask_scale <= self.mask_threshold:
            raise ValueError(
                "`sparsity_weight` and `init_from` need a `mask_scale` above `mask_threshold`. Received: "
                f"mask_scale={self.mask_scale}, mask_threshold={self.mask_threshold}."
            )


@METHODS.register("piggyback")
class Piggyback(Method):
    """Learns `mask_real` for every kernel of the backbone, and the head; the backbone's weights stay shared.

    Args:
        config: As for `Method`.
        memory: As for `Method`.
        heads: As for `Method`.
        start: What the masks start from, if `config.init_from` says so.
    """

    Config = PiggybackConfig
    trains = ("mask", "norm", "head")

    def __init__(
        self,
        config: PiggybackConfig | None = None,
        memory: Memory | None = None,
        heads: Mapping[str, int] | None = None,
        start: MaskStart | None = None,
    ):
        super().__init__(config, memory, heads)
        self.start = start
        # What the class says holds for masks that start on their own.
        self.sequential = self.config.init_from == AUTO

    def build(self, backbone: Backbone, num_classes: int, seed: int = 0) -> keras.Model:
        model = super().build(backbone, num_classes, seed)
        if not self.config.sparsity_weight:
            return model
        penalty = self._price(model)
        return PenalisedModel(inputs=model.input, outputs=model.output, name=model.name, penalty=penalty)

    def features(self, backbone: Backbone, seed: int) -> keras.Model:
        config = self.config
        if config.init_from and self.start is None:
            raise ValueError(
                f"Method 'piggyback' has init_from={config.init_from!r} and no start; `sequences.with_start` reads it."
            )
        model = mask(
            backbone.model,
            MaskConfig(
                kind=config.mask_kind,
                threshold=config.mask_threshold,
                init=config.mask_init,
                scale=config.mask_scale,
                gradient_scaling=config.mask_gradient_scaling,
                seed=seed,
            ),
            include=split_patterns(config.mask_include),
            exclude=split_patterns(config.mask_exclude),
            norm=config.norm,
            norm_statistics=config.norm_statistics,
            norm_momentum=config.norm_momentum,
        )
        if self.start is not None:
            start_masks(model, self.start.masks)
            variables = named_variables(model)
            for path, value in self.start.norm.items():
                variables[path].assign(value)
        return model

    def _price(self, model: keras.Model) -> Callable[[], tf.Tensor]:
        """Returns what computes `sparsity_weight * D / N`."""
        masks = [weight.mask_real for weight in masked_weights(model).values()]
        price = self.config.sparsity_weight / sum(math.prod(mask_real.shape) for mask_real in masks)
        limits = self.config.mask_threshold, self.config.mask_scale

        def penalty() -> tf.Tensor:
            return price * tf.add_n([count_dropped(tf.convert_to_tensor(v.value), *limits) for v in masks])

        return penalty


def split_patterns(text: str) -> list[str]:
    """Returns the patterns of a comma-separated list, without blanks and empty entries."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
