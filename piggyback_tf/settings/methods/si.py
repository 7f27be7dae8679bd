"""Settings of synaptic intelligence."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import option


@CONFIGS.register("si")
@dataclasses.dataclass(frozen=True)
class SIConfig(TrainedNetworkConfig):
    """Settings of synaptic intelligence."""

    problems = ("class", "multilabel")

    si_strength: float = option(
        1.0, "c: weight of the penalty for earlier tasks, compared with the new task's loss; 0: none."
    )
    si_damping: float = option(1e-5, "xi: smaller values give more importance to weights that hardly moved.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.si_strength >= 0:
            raise ValueError(f"`si_strength` must not be negative. Received: si_strength={self.si_strength}.")
        if not self.si_damping > 0:
            raise ValueError(f"`si_damping` must be above 0. Received: si_damping={self.si_damping}.")
