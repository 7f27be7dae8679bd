"""Fine-tuning: a whole network per task, or one that every task changes (the paper's "Individual Networks")."""

import keras

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.parts.shared_network import SharedNetwork, trainable_network
from piggyback_tf.settings.methods.finetune import FinetuneConfig, FinetuneSequentialConfig


@METHODS.register("finetune")
class Finetune(Method):
    """Trains all weights of a copy of the backbone, and the head."""

    Config = FinetuneConfig
    config: FinetuneConfig
    makes_pack = False

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        return trainable_network(backbone, self.config)


@METHODS.register("finetune_sequential")
class FinetuneSequential(SharedNetwork):
    """Trains one network on task after task, which is what methods against forgetting are compared with."""

    Config = FinetuneSequentialConfig
    config: FinetuneSequentialConfig
