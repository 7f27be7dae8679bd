"""Settings of PackNet."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, NormConfig
from piggyback_tf.settings.records import check_choice, check_integer, option

SCHEDULES = ("one_shot", "gradual")


@CONFIGS.register("packnet")
@dataclasses.dataclass(frozen=True)
class PackNetConfig(NormConfig):
    """Settings of PackNet; the defaults are the paper's, but for `norm_statistics`."""

    trains = ("weights", "norm", "head")
    problems = ("class", "multilabel", "map")
    why_one_machine = "TensorFlow does not send its bytes, which say whose a weight is, from machine to machine"
    recipe = MappingProxyType(
        {
            "schedule": "step",
            "warmup_steps": 0,
            **{f"{group}_optimizer": "sgd" for group in trains},
            **{f"{group}_lr": 1e-3 for group in trains},
        }
    )

    packnet_schedule: str = option("one_shot", "When weights are freed. one_shot: all at once; gradual: in steps.")
    packnet_prune_first: float = option(0.5, "Share of each layer's weights that the first task leaves free.")
    packnet_prune: float = option(0.75, "Share of each layer's free weights that a later task leaves free.")
    packnet_retrain: float = option(1 / 3, "Share of the epochs that retrain the weights that the task keeps.")
    packnet_parts: int = option(20, "With packnet_schedule=gradual: number of steps in which weights are freed.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("packnet_schedule", self.packnet_schedule, SCHEDULES)
        for name in ("packnet_prune_first", "packnet_prune"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1). Received: {name}={getattr(self, name)}.")
        if not 0 < self.packnet_retrain < 1:
            raise ValueError(f"`packnet_retrain` must be in (0, 1). Received: packnet_retrain={self.packnet_retrain}.")
        check_integer("packnet_parts", self.packnet_parts, 1)
