"""Settings of Deep Adaptation Networks."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, NormConfig
from piggyback_tf.settings.records import option


@CONFIGS.register("dan")
@dataclasses.dataclass(frozen=True)
class DANConfig(NormConfig):
    """Settings of Deep Adaptation Networks."""

    trains = ("adapter", "weights", "norm", "head")
    problems = ("class", "multilabel", "map")
    why_one_machine = "after 324 steps its numbers differed by up to 3.2e-3 from those of one machine"

    dan_noise: float = option(1.0, "Initial noise on D's diagonal, in units of 1 / output channels; 0: identity.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dan_noise < 0:
            raise ValueError(f"`dan_noise` must not be negative. Received: dan_noise={self.dan_noise}.")
