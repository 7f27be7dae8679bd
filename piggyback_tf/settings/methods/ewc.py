"""Settings of elastic weight consolidation."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("ewc")
@dataclasses.dataclass(frozen=True)
class EWCConfig(TrainedNetworkConfig):
    """Settings of elastic weight consolidation."""

    why_one_machine = "after 162 steps its numbers differed by up to 2.2e-4 from those of one machine"
    why_not = MappingProxyType(
        dict.fromkeys(("multilabel", "map", "boxes"), "its Fisher information is for one class per image")
    )

    ewc_lambda: float = option(
        5000.0, "Weight of the penalty for earlier tasks, compared with the new task's loss; 0: none."
    )
    ewc_fisher_images: int = option(500, "Number of random training images for the Fisher information; 0: all.")
    ewc_online: bool = option(False, "One penalty for all earlier tasks instead of one for each.")
    ewc_decay: float = option(
        0.95, "With --ewc_online: factor for the earlier tasks' Fisher information at each new task."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("ewc_fisher_images", self.ewc_fisher_images, 0)
        if not self.ewc_lambda >= 0:
            raise ValueError(f"`ewc_lambda` must not be negative. Received: ewc_lambda={self.ewc_lambda}.")
        if not 0 <= self.ewc_decay <= 1:
            raise ValueError(f"`ewc_decay` must be in [0, 1]. Received: ewc_decay={self.ewc_decay}.")
