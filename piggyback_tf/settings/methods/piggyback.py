"""Settings of Piggyback."""

import dataclasses

from piggyback_tf.settings.masks import MaskConfig, check_masks
from piggyback_tf.settings.methods.base import CONFIGS, OptionalNormConfig
from piggyback_tf.settings.records import option, prefixed, without_prefix

_PREFIX = "mask_"


@CONFIGS.register("piggyback")
@dataclasses.dataclass(frozen=True)
class PiggybackConfig(prefixed(MaskConfig, _PREFIX, OptionalNormConfig)):  # type: ignore[misc]  # Made at run time.
    """Settings of the masks, those of `MaskConfig` too; the defaults are the paper's, but for `norm_statistics`."""

    trains = ("mask", "norm", "head")
    problems = ("class", "multilabel", "map", "boxes")
    why_one_machine = ""

    mask_include: str = option("*", "Comma-separated patterns of layer paths that get a mask.")
    mask_exclude: str = option("", "Comma-separated patterns of layer paths that get none.")
    init_from: str = option(
        "", "Start from the masks of PACK. auto:PACKS, or auto with --tasks: from the best pack, or from none."
    )
    sparsity_weight: float = option(0.0, "Penalty for dropped weights: what the loss gains if all are dropped.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_masks(without_prefix(self, MaskConfig, _PREFIX), _PREFIX)
        if self.sparsity_weight < 0:
            raise ValueError(f"`sparsity_weight` must be 0 or more. Received: sparsity_weight={self.sparsity_weight}.")
        if (self.sparsity_weight or self.init_from) and self.mask_scale <= self.mask_threshold:
            raise ValueError(
                "`sparsity_weight` and `init_from` need a `mask_scale` above `mask_threshold`. Received: "
                f"mask_scale={self.mask_scale}, mask_threshold={self.mask_threshold}."
            )

        if self.init_from == "auto" and self.mask_affine != "none":
            raise ValueError(
                "`init_from='auto'` starts from masks of the tasks before, which are no masks to start from where they "
                f"are affine. Use mask_affine='none', or name packs. Received: mask_affine={self.mask_affine!r}."
            )

    def masks(self, seed: int = 0) -> MaskConfig:
        """Returns the settings of the masks.

        Args:
            seed: Seed of a random start.

        Raises:
            ValueError: If one is not valid.
        """
        return MaskConfig(**without_prefix(self, MaskConfig, _PREFIX), seed=seed)
