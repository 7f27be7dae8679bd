"""Batch norm only: gamma and beta of each task over frozen kernels (Bilen and Vedaldi 2017, arXiv 1701.07275).

A layer of batch norm computes `gamma (x - mean) / sqrt(variance + epsilon) + beta`. Gamma and beta belong to the task.
With `norm_statistics="frozen"` mean and variance are those of the base, and a pack holds two numbers a channel. With
`norm_statistics="task"` they follow the task's batches, as in the paper, and a pack holds four. All kernels and biases
are the base's. The network starts as the base.
"""

import keras

from piggyback_tf.backbones import Backbone, is_batch_norm
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.settings.methods.norm_only import NormOnlyConfig
from piggyback_tf.surgery import TrainedNorm, check_has_batch_norm, copy_layers, share_variables


@METHODS.register("norm_only")
class NormOnly(Method):
    """Learns batch norm and the head."""

    Config = NormOnlyConfig
    config: NormOnlyConfig

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        check_has_batch_norm(backbone.model, "ssf, lora and piggyback learn on such networks")
        config = self.config
        norm = TrainedNorm(config.norm_statistics, config.norm_momentum, ("gamma", "beta"))

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            return norm.settings_of(layer) if is_batch_norm(layer) else (type(layer), {"trainable": False})

        model, copies = copy_layers(backbone.model, settings_of)
        for copy, layer in copies:
            share_variables(copy, layer, own=norm.trained_weights if is_batch_norm(layer) else ())
        return model
