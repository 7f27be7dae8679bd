"""Settings of joint training."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig


@CONFIGS.register("joint")
@dataclasses.dataclass(frozen=True)
class JointConfig(TrainedNetworkConfig):
    """Settings of joint training."""

    at_once = True
