"""Settings of joint training."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig


@CONFIGS.register("joint")
@dataclasses.dataclass(frozen=True)
class JointConfig(TrainedNetworkConfig):
    """Settings of joint training."""

    at_once = True
    why_not = MappingProxyType(
        dict.fromkeys(
            ("multilabel", "map", "boxes"), "it trains the classes of all tasks together, with one class per image"
        )
    )
