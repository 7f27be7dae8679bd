"""How masks are made: one settings object for layers, models and command line."""

import dataclasses

from piggyback_tf.registry import unknown_name_message
from piggyback_tf.settings.records import option

MASK_KINDS = ("binary", "ternary")
GRADIENT_SCALINGS = ("none", "average", "individual")
MASK_INITS = ("constant", "magnitude", "uniform")


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
        seed: Seed of the uniform init.

    Raises:
        ValueError: If a value is none of the valid ones.
    """

    kind: str = option("binary", "binary: masks in {0, 1}; ternary: {-1, 0, 1}.")
    threshold: float = option(5e-3, "tau of equation 4: mask_real >= tau is used.")
    init: str = option(
        "constant", "Start of mask_real. constant: mask_scale; magnitude: in proportion to |W|; uniform: random."
    )
    scale: float = option(1e-2, "Size of mask_real at the start.")
    gradient_scaling: str = option(
        "none", "none: dE/dW' * W; average: divided by the layer's mean |W|; individual: divided by each |W|."
    )
    seed: int = 0

    def __post_init__(self) -> None:
        for field, valid in (("kind", MASK_KINDS), ("init", MASK_INITS), ("gradient_scaling", GRADIENT_SCALINGS)):
            if getattr(self, field) not in valid:
                raise ValueError(unknown_name_message(f"mask {field}", str(getattr(self, field)), list(valid)))
        if self.kind == "ternary" and self.threshold <= 0:
            raise ValueError(f"Ternary masks need a threshold above 0. Received: threshold={self.threshold}.")
        if self.init == "constant" and self.scale < self.threshold:
            raise ValueError(
                "With init='constant' a scale below the threshold would start with every weight masked. Received: "
                f"scale={self.scale}, threshold={self.threshold}."
            )
        if self.scale <= 0:
            raise ValueError(f"The scale of the mask's initial values must be above 0. Received: scale={self.scale}.")
