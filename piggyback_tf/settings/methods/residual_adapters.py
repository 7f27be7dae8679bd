"""Settings of residual adapters."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, NormConfig
from piggyback_tf.settings.records import check_choice, option

KINDS = ("series", "parallel")


@CONFIGS.register("residual_adapters")
@dataclasses.dataclass(frozen=True)
class ResidualAdaptersConfig(NormConfig):
    """Settings of residual adapters."""

    trains = ("adapter", "norm", "head")
    problems = ("class", "multilabel", "map", "boxes")
    recipe = MappingProxyType(
        {
            **{f"{group}_optimizer": "sgd" for group in trains},
            **{f"{group}_lr": 0.025 for group in trains},
        }
    )

    adapter_kind: str = option(
        "parallel", "Residual adapters. parallel: beside each 3x3 convolution; series: after it."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("adapter_kind", self.adapter_kind, KINDS)
