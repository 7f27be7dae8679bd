"""Settings of Learning without Forgetting."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import option


@CONFIGS.register("lwf")
@dataclasses.dataclass(frozen=True)
class LwFConfig(TrainedNetworkConfig):
    """Settings of Learning without Forgetting; T and weight are the paper's, which warms up to convergence."""

    why_one_machine = ""
    why_not = MappingProxyType(
        dict.fromkeys(("multilabel", "map", "boxes"), "it compares old answers as those for one class per image")
    )

    lwf_temperature: float = option(
        2.0, "T: logits are divided by it before current and recorded old answers are compared."
    )
    lwf_weight: float = option(1.0, "lambda_o: weight of the old answers, compared with the new task's loss.")
    lwf_warmup: float = option(0.2, "Share of the epochs (at least one) in which only the new head learns; 0: none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lwf_temperature > 0:
            raise ValueError(f"`lwf_temperature` must be above 0. Received: lwf_temperature={self.lwf_temperature}.")
        if not self.lwf_weight >= 0:
            raise ValueError(f"`lwf_weight` must not be negative. Received: lwf_weight={self.lwf_weight}.")
        if not 0 <= self.lwf_warmup < 1:
            raise ValueError(f"`lwf_warmup` must be in [0, 1). Received: lwf_warmup={self.lwf_warmup}.")
