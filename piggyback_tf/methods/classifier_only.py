"""Classifier only: a new head on the frozen backbone's features (the paper's first baseline)."""

import keras

from piggyback_tf.backbones import Backbone
from piggyback_tf.masking import share
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.settings.methods.classifier_only import ClassifierOnlyConfig


@METHODS.register("classifier_only")
class ClassifierOnly(Method):
    """Learns the head; the backbone is shared, frozen, and batch norm stays in inference mode."""

    Config = ClassifierOnlyConfig
    config: ClassifierOnlyConfig

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        return share(backbone.model)
