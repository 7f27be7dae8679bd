"""Settings of hard attention to the task."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig
from piggyback_tf.settings.records import option

LARGEST_EMBEDDING = 6.0


@CONFIGS.register("hat")
@dataclasses.dataclass(frozen=True)
class HATConfig(MethodConfig):
    """Settings of hard attention to the task; the defaults are the paper's."""

    trains = ("adapter", "weights", "head")
    problems = ("class", "multilabel", "map")
    recipe = MappingProxyType(
        {
            "sgd_momentum": 0.0,
            **{f"{group}_optimizer": "sgd" for group in trains},
            **{f"{group}_lr": 0.025 for group in trains},
        }
    )

    hat_smax: float = option(400.0, "s_max: steepness of the gates at the end of each epoch.")
    hat_lambda: float = option(0.75, "lambda: weight of the penalty for used units, which keeps units for later tasks.")
    hat_mean: float = option(0.0, "Initial mean of the embeddings; above 0, more gates start open.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.hat_smax >= 1:
            raise ValueError(f"`hat_smax` must be at least 1. Received: hat_smax={self.hat_smax}.")
        if not self.hat_lambda >= 0:
            raise ValueError(f"`hat_lambda` must not be negative. Received: hat_lambda={self.hat_lambda}.")
        if not abs(self.hat_mean) <= LARGEST_EMBEDDING:
            raise ValueError(
                f"`hat_mean` must be within {LARGEST_EMBEDDING}, as embeddings are. Received: hat_mean={self.hat_mean}."
            )
