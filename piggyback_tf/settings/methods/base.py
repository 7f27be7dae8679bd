"""What the settings of methods share. A method's settings say what is known of it before Keras is loaded."""

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from piggyback_tf.registry import Registry
from piggyback_tf.settings.records import check_choice, check_finite, option
from piggyback_tf.targets import TARGETS, USUAL, check_own_settings

CONFIGS: Registry[type["MethodConfig"]] = Registry("method")
VARIABLE_GROUPS = ("mask", "head", "norm", "weights", "adapter")
HEAD_INITS = ("zeros", "glorot")
CLASS_WEIGHTS = ("none", "median_frequency")
# Of tasks that find the class of each pixel; see `problems/heads/`.
PIXEL_HEADS = ("fpn", "fcn32", "fcn16", "fcn8")
NORMS = ("frozen", "task")
NORM_STATISTICS = ("frozen", "task")


@dataclasses.dataclass(frozen=True)
class MethodConfig:
    """Settings that every method has."""

    # The groups of variables it can train; settings of the training that are for none of them are not recorded.
    trains: ClassVar[tuple[str, ...]] = VARIABLE_GROUPS
    # Settings of the training, fields of `TrainConfig`, in which the method's own recipe differs from the defaults.
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    # What it can find in an image: names of problems.
    problems: ClassVar[tuple[str, ...]] = (USUAL,)
    # By the name of a problem, why it does not learn that one: a clause.
    why_not: ClassVar[Mapping[str, str]] = MappingProxyType({})
    # Whether all tasks are learned in one training.
    at_once: ClassVar[bool] = False
    # Why several machines cannot learn a task together by it, a clause; empty if they can, which was compared.
    why_one_machine: ClassVar[str] = "it has not been tried"

    head: str = option(
        "fpn",
        "Head for label maps. fpn: a light feature pyramid, on any network; fcn32, fcn16, fcn8: on the VGG networks.",
        before="fpn",
    )
    class_weights: str = option(
        "none",
        "For label maps. median_frequency: pixels of rare classes get a larger weight in the loss.",
        before="none",
    )
    head_dropout: float = option(0.0, "Dropout rate between the features and the head.")
    head_init: str = option("auto", "Initial head: zeros, glorot, or auto: the method decides.", before="glorot")

    def __post_init__(self) -> None:
        check_finite(self)
        check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        check_choice("head", self.head, PIXEL_HEADS)
        check_choice("head_init", self.head_init, ("auto", *HEAD_INITS))


@dataclasses.dataclass(frozen=True)
class NormConfig(MethodConfig):
    """Settings of methods that train batch norm, or can."""

    norm_statistics: str = option("frozen", "Mean and variance of trained batch norm. frozen: the base's; task: own.")
    norm_momentum: float = option(0.9, "Momentum of statistics with --norm_statistics=task.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_trained_norm(self.norm_statistics, self.norm_momentum)


@dataclasses.dataclass(frozen=True)
class OptionalNormConfig(NormConfig):
    """Settings of methods that train batch norm where they are told to."""

    norm: str = option("frozen", "Batch norm. frozen: the base's; task: trained for the task.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_norm(self.norm)


@dataclasses.dataclass(frozen=True)
class TrainedNetworkConfig(OptionalNormConfig):
    """Settings of methods that train the network itself."""

    trains: ClassVar[tuple[str, ...]] = ("weights", "norm", "head")


def check_learns(name: str, config: type[MethodConfig], target: str, whose: str) -> None:
    """Refuses what a method cannot learn to find.

    Args:
        name: What the method is called.
        config: Its settings.
        target: What there is to find, a key of `TARGETS`.
        whose: What has that, for the error: the spec of data, or a task.

    Raises:
        ValueError: If the method does not learn it, with the reason.
    """
    if target in config.problems:
        return
    able = [other for other in CONFIGS.names() if target in CONFIGS[other].problems]
    reason = config.why_not.get(target, "it has not been tried")
    raise ValueError(
        f"{whose} has {TARGETS[target]}, which method {name} does not learn: {reason}. Methods that do: "
        f"{', '.join(able)}."
    )


def check_is_for(config: MethodConfig, targets: Collection[str]) -> None:
    """Refuses a setting that is for tasks of other targets alone, and would do nothing.

    Args:
        config: The settings of a method.
        targets: What the tasks find that are learned with them.

    Raises:
        ValueError: With the first such setting.
    """
    given = {
        field.name: repr(value)
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }
    check_own_settings(given, targets, "`{}={}`")


def check_norm(norm: str) -> None:
    """Raises a `ValueError` if a value of the setting `norm` is not valid."""
    check_choice("norm", norm, NORMS)


def check_trained_norm(statistics: str, momentum: float) -> None:
    """Raises a `ValueError` if batch norm cannot be trained so."""
    check_choice("norm_statistics", statistics, NORM_STATISTICS)
    if not 0 <= momentum < 1:
        raise ValueError(f"`norm_momentum` must be in [0, 1). Received: norm_momentum={momentum}.")
