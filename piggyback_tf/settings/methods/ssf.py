"""Settings of scales and shifts of features."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig


@CONFIGS.register("ssf")
@dataclasses.dataclass(frozen=True)
class SSFConfig(MethodConfig):
    """Settings of scales and shifts of features."""

    trains = ("adapter", "head")
    problems = ("class", "multilabel", "map")
