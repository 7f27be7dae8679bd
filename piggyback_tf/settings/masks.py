"""How masks are made: one settings object for layers, models and command line."""

import dataclasses

from piggyback_tf.registry import unknown_name_message

MASK_KINDS = ("binary", "ternary")
GRADIENT_SCALINGS = ("none", "average", "individual")
MASK_INITS = ("constant", "magnitude", "uniform")


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Settings of a weight mask.

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

    kind: str = "binary"
    threshold: float = 5e-3
    init: str = "constant"
    scale: float = 1e-2
    gradient_scaling: str = "none"
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
