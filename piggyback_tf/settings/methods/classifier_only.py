"""Settings of the classifier on frozen features."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig


@CONFIGS.register("classifier_only")
@dataclasses.dataclass(frozen=True)
class ClassifierOnlyConfig(MethodConfig):
    """Settings of the classifier."""

    trains = ("head",)
    problems = ("class", "multilabel", "map", "boxes")
    why_one_machine = ""
