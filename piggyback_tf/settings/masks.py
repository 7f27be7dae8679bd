"""How masks are made: one settings object for layers, models and command line."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from piggyback_tf.settings.records import check_choice, option

MASK_KINDS = ("binary", "ternary")
GRADIENT_SCALINGS = ("none", "average", "individual")
MASK_INITS = ("constant", "magnitude", "uniform")
AFFINE = ("none", "layer")


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Settings of a weight mask; the defaults are the paper's.

    A method has those that are an `option` with `mask_` in front; see `prefixed`.

    Attributes:
        kind: `"binary"` masks in {0, 1} or `"ternary"` masks in {-1, 0, 1}.
        threshold: `tau` of equation 4; a weight is used where `mask_real >= tau`.
        init: How `mask_real` starts. `"constant"`: `scale` everywhere, so that the network starts as the base.
            `"magnitude"`: `scale * |W| / mean|W|` of the layer, so that small weights start masked.
            `"uniform"`: uniform in [-`scale`, `scale`].
        scale: Size of the initial values.
        gradient_scaling: `"none"`, `"average"` or `"individual"`; see `threshold.masked_kernel`.
        affine: `"none"`: a kernel W with mask m is `W m`. `"layer"`: it is `k0 W + k1 + (k2 + k3 W) m` with four
            trained numbers for each kernel, which start as 0, 0, 0 and 1.
        seed: Seed of the uniform init.

    Raises:
        ValueError: If a value is none of the valid ones.
    """

    kind: str = option("binary", "binary: masks in {0, 1}; ternary: {-1, 0, 1}.")
    threshold: float = option(5e-3, "tau of equation 4: kept if mask_real >= tau.")
    init: str = option(
        "constant", "Initial mask_real. constant: mask_scale; magnitude: in proportion to |W|; uniform: random."
    )
    scale: float = option(1e-2, "Initial size of mask_real.")
    gradient_scaling: str = option(
        "none", "none: dE/dW' * W; average: divided by the layer's mean |W|; individual: divided by each |W|."
    )
    affine: str = option(
        "none",
        "none: a kernel is W m; layer: k0 W + k1 + (k2 + k3 W) m, with numbers that are learned at --norm_lr.",
        before="none",
    )
    seed: int = 0

    def __post_init__(self) -> None:
        check_masks(vars(self))

    @property
    def distance(self) -> float:
        """How far masks start from the threshold, or from 0 if that is where they start."""
        return abs(self.scale - self.threshold) or self.scale


def check_masks(settings: Mapping[str, Any], prefix: str = "") -> None:
    """Checks the values of the settings of masks.

    Args:
        settings: Every field of `MaskConfig` that is an `option`, by name.
        prefix: What stands in front of the names where these were given, as flags for example.

    Raises:
        ValueError: If a value is none of the valid ones.
    """
    choices = {"kind": MASK_KINDS, "init": MASK_INITS, "gradient_scaling": GRADIENT_SCALINGS, "affine": AFFINE}
    for name, valid in choices.items():
        check_choice(f"{prefix}{name}", settings[name], valid)
    scale, threshold = settings["scale"], settings["threshold"]
    if settings["kind"] == "ternary" and threshold <= 0:
        raise ValueError(f"Ternary masks need a threshold above 0. Received: {prefix}threshold={threshold}.")
    if settings["init"] == "constant" and scale < threshold:
        raise ValueError(
            f"With {prefix}init='constant' a scale below the threshold would start with every weight masked. Received: "
            f"{prefix}scale={scale}, {prefix}threshold={threshold}."
        )
    if scale <= 0:
        raise ValueError(f"The scale of the mask's initial values must be above 0. Received: {prefix}scale={scale}.")
