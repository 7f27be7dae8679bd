"""Settings of memory aware synapses."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("mas")
@dataclasses.dataclass(frozen=True)
class MASConfig(TrainedNetworkConfig):
    """Settings of memory aware synapses."""

    problems = ("class", "multilabel")
    why_one_machine = "after 162 steps its numbers differed by up to 2.2e-4 from those of one machine"

    mas_lambda: float = option(
        1.0, "Weight of the penalty for earlier tasks, compared with the new task's loss; 0: none."
    )
    mas_images: int = option(500, "Number of random training images that measure which weights matter; 0: all.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("mas_images", self.mas_images, 0)
        if not self.mas_lambda >= 0:
            raise ValueError(f"`mas_lambda` must not be negative. Received: mas_lambda={self.mas_lambda}.")
