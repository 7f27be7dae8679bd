"""Settings of progressive neural networks."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import option


@CONFIGS.register("pnn")
@dataclasses.dataclass(frozen=True)
class PNNConfig(TrainedNetworkConfig):
    """Settings of progressive neural networks."""

    trains = ("adapter", "weights", "norm", "head")
    problems = ("class", "multilabel", "map")
    why_one_machine = "after 162 steps its numbers differed by up to 2.2e-4 from those of one machine"

    pnn_scale: float = option(0.1, "Initial factor of the outputs of earlier columns.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pnn_scale == 0:
            raise ValueError("`pnn_scale` must not be 0, from where laterals get no gradient. Received: pnn_scale=0.0.")
