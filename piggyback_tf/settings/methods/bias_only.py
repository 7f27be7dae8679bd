"""Settings of biases only."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig


@CONFIGS.register("bias_only")
@dataclasses.dataclass(frozen=True)
class BiasOnlyConfig(MethodConfig):
    """Settings of biases only."""

    trains = ("adapter", "norm", "head")
    problems = ("class", "multilabel", "map")
