"""Fine-tuning: a whole network per task (the paper's "Individual Networks")."""

import dataclasses

import keras

from piggyback_tf.backbones import Backbone, batch_norm_paths
from piggyback_tf.methods.base import METHODS, Method, MethodConfig, copy_of_base, option


@dataclasses.dataclass(frozen=True)
class FinetuneConfig(MethodConfig):
    """Settings of fine-tuning."""

    norm: str = option("frozen", "Batch norm of the backbone. frozen: as it is; task: trained for each task.")
    norm_momentum: float = option(0.9, "Momentum of batch norm's moving statistics with --norm=task.")

    def __post_init__(self) -> None:
        if self.norm not in ("frozen", "task"):
            raise ValueError(f"`norm` must be 'frozen' or 'task'. Received: norm={self.norm!r}.")


@METHODS.register("finetune")
class Finetune(Method):
    """Trains all weights of a copy of the backbone, and the head."""

    Config = FinetuneConfig
    keeps_base = False

    def features(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        if self.config.norm == "task" and not batch_norm_paths(backbone.model):
            raise ValueError(f"Backbone {backbone.name!r} has no batch normalisation to train; use norm='frozen'.")
        return copy_of_base(
            backbone.model, train_norm=self.config.norm == "task", norm_momentum=self.config.norm_momentum
        )
