"""Settings of LoRA."""

import dataclasses

from piggyback_tf.settings.methods.base import CONFIGS, MethodConfig
from piggyback_tf.settings.records import check_integer, option


@CONFIGS.register("lora")
@dataclasses.dataclass(frozen=True)
class LoRAConfig(MethodConfig):
    """Settings of low-rank changes of kernels."""

    trains = ("adapter", "head")
    problems = ("class", "multilabel", "map")
    why_one_machine = "after 324 steps its numbers differed by up to 4.4e-5 from those of one machine"

    lora_rank: int = option(4, "LoRA: rank of the update of a kernel, at most the smaller side of the kernel.")
    lora_alpha: float = option(4.0, "LoRA: the update is multiplied by lora_alpha / lora_rank.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("lora_rank", self.lora_rank, 1)
        if not self.lora_alpha > 0:
            raise ValueError(f"`lora_alpha` must be above 0. Received: lora_alpha={self.lora_alpha}.")
