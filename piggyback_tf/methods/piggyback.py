"""Piggyback: one mask over the frozen weights per task (Mallya, Davis, Lazebnik, ECCV 2018, section 3)."""

import dataclasses

import keras

from piggyback_tf.backbones import Backbone
from piggyback_tf.masking import MaskConfig, mask
from piggyback_tf.methods.base import METHODS, Method, MethodConfig, option


@dataclasses.dataclass(frozen=True)
class PiggybackConfig(MethodConfig):
    """Settings of the masks; the defaults are the paper's."""

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
    norm_momentum: float = option(0.9, "Momentum of batch norm's statistics, --norm=task.")


@METHODS.register("piggyback")
class Piggyback(Method):
    """Learns `mask_real` for every kernel of the backbone, and the head; the backbone's weights stay shared."""

    Config = PiggybackConfig

    def features(self, backbone: Backbone, seed: int) -> keras.Model:
        config = self.config
        return mask(
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
            norm_momentum=config.norm_momentum,
        )


def split_patterns(text: str) -> list[str]:
    """Returns the patterns of a comma-separated list, without blanks and empty entries."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
