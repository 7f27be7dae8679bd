"""Settings of methods that learn on with images of earlier tasks."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig
from piggyback_tf.settings.records import check_integer, option


@dataclasses.dataclass(frozen=True)
class ReplayConfig(TrainedNetworkConfig):
    """Settings of a memory of images."""

    why_not = MappingProxyType(dict.fromkeys(("multilabel", "map", "boxes"), "it remembers only one class per image"))

    replay_images: int = option(200, "Number of training images to keep, with equal shares for all tasks.")
    replay_batch: int = option(32, "Number of kept images in a training step.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("replay_images", self.replay_images, 1)
        check_integer("replay_batch", self.replay_batch, 1)


@CONFIGS.register("er")
@dataclasses.dataclass(frozen=True)
class ERConfig(ReplayConfig):
    """Settings of experience replay."""


@CONFIGS.register("agem")
@dataclasses.dataclass(frozen=True)
class AGEMConfig(ReplayConfig):
    """Settings of averaged gradient episodic memory.

    Its recipe is SGD without momentum, at one rate for all groups of variables: only then the step of the weights has
    the direction of the gradient, for which alone the method promises something.
    """

    recipe = MappingProxyType(
        {
            "sgd_momentum": 0.0,
            **{f"{group}_optimizer": "sgd" for group in ReplayConfig.trains},
            **{f"{group}_lr": 0.025 for group in ReplayConfig.trains},
        }
    )


@CONFIGS.register("derpp")
@dataclasses.dataclass(frozen=True)
class DERPPConfig(ReplayConfig):
    """Settings of dark experience replay++."""

    derpp_alpha: float = option(0.5, "alpha: weight of the kept images' old answers; 0: none.")
    derpp_beta: float = option(0.5, "beta: weight of the kept images' labels; 0: none.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("derpp_alpha", "derpp_beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative. Received: {name}={getattr(self, name)}.")
