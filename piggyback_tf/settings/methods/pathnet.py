"""Settings of PathNet."""

import dataclasses
from types import MappingProxyType

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("pathnet")
@dataclasses.dataclass(frozen=True)
class PathNetConfig(MethodConfig):
    """Settings of PathNet.

    Its recipe is SGD without momentum: momentum would move modules that are not on the path of a step.
    """

    trains = ("adapter", "head")
    problems = ("class", "multilabel")
    recipe = MappingProxyType(
        {
            "sgd_momentum": 0.0,
            **{f"{group}_optimizer": "sgd" for group in trains},
            **{f"{group}_lr": 0.025 for group in trains},
        }
    )

    pathnet_modules: int = option(8, "Number of modules beside each stage.")
    pathnet_active: int = option(3, "Largest number of modules per stage in a path.")
    pathnet_reduction: int = option(16, "A module is this many times narrower than its stage.")
    pathnet_population: int = option(16, "Number of competing paths.")
    pathnet_steps: int = option(5, "Training steps of each of the two paths in a tournament.")
    pathnet_search: float = option(0.5, "Share of the epochs for tournaments; the rest trains the best path.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("pathnet_modules", self.pathnet_modules, 1, 255)
        check_integer("pathnet_active", self.pathnet_active, 1, self.pathnet_modules)
        check_integer("pathnet_reduction", self.pathnet_reduction, 1)
        check_integer("pathnet_population", self.pathnet_population, 2)
        check_integer("pathnet_steps", self.pathnet_steps, 1)
        if not 0 < self.pathnet_search < 1:
            raise ValueError(f"`pathnet_search` must be in (0, 1). Received: pathnet_search={self.pathnet_search}.")
