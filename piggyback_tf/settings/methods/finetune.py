"""Settings of fine-tuning."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, TrainedNetworkConfig


@CONFIGS.register("finetune")
@dataclasses.dataclass(frozen=True)
class FinetuneConfig(TrainedNetworkConfig):
    """Settings of fine-tuning a network for each task."""

    problems = ("class", "multilabel", "map", "boxes")
    why_one_machine = ""


@CONFIGS.register("finetune_sequential")
@dataclasses.dataclass(frozen=True)
class FinetuneSequentialConfig(TrainedNetworkConfig):
    """Settings of fine-tuning one network on task after task."""

    problems = ("class", "multilabel", "map")
    why_one_machine = "after 162 steps its numbers differed by up to 2.2e-4 from those of one machine"
