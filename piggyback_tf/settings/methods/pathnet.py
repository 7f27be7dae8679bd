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

    pathnet_modules: int = option(8, "Modules beside each stage.")
    pathnet_active: int = option(3, "Of these, how many a path goes through at most.")
    pathnet_reduction: int = option(16, "How many times narrower than its stage a module is.")
    pathnet_population: int = option(16, "Paths that compete.")
    pathnet_steps: int = option(5, "Steps that each of two paths is trained for in a tournament.")
    pathnet_search: float = option(0.5, "Part of the epochs for tournaments; in the others the best path is trained.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("pathnet_modules", self.pathnet_modules, 1, 255)
        check_integer("pathnet_active", self.pathnet_active, 1, self.pathnet_modules)
        check_integer("pathnet_reduction", self.pathnet_reduction, 1)
        check_integer("pathnet_population", self.pathnet_population, 2)
        check_integer("pathnet_steps", self.pathnet_steps, 1)
        if not 0 < self.pathnet_search < 1:
            raise ValueError(f"`pathnet_search` must be in (0, 1). Received: pathnet_search={self.pathnet_search}.")
