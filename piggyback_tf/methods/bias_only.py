"""Biases only: each task has its own offsets over frozen kernels (BitFit; Ben Zaken, Goldberg and Ravfogel, ACL 2022,
arXiv 2106.10199; of convolutional networks Cai et al., TinyTL, NeurIPS 2020, arXiv 2007.11622).

A layer computes `W x + b` with the base's W and the task's b. Every bias of a layer with a kernel is learned. Where
some kernel has none, since batch norm comes behind it, beta of batch norm is learned, too: in `gamma x + beta` it is
what a bias is. Gamma and the statistics are the base's. The network starts as the base.
"""

import keras

from piggyback_tf.backbones import Backbone, is_batch_norm, named_layers
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.settings.methods.bias_only import BiasOnlyConfig
from piggyback_tf.surgery import KERNELS, OwnBias, TrainedNorm, copy_layers, derived_layers, share_variables

BIASED_LAYERS = derived_layers(OwnBias, "OwnBias", KERNELS)


@METHODS.register("bias_only")
class BiasOnly(Method):
    """Learns biases, beta of batch norm, and the head."""

    Config = BiasOnlyConfig
    config: BiasOnlyConfig

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        layers = [layer for _, layer in named_layers(backbone.model)]
        some_have_none = any(type(layer) in KERNELS and layer.bias is None for layer in layers)
        norm = TrainedNorm(only=("beta",))

        def has_own(layer: keras.Layer) -> bool:
            if is_batch_norm(layer):
                return some_have_none and layer.center
            return type(layer) in KERNELS and layer.bias is not None

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if not has_own(layer):
                return type(layer), {"trainable": False}
            return (
                norm.settings_of(layer) if is_batch_norm(layer) else (BIASED_LAYERS[type(layer)], {"trainable": True})
            )

        if not any(map(has_own, layers)):
            raise ValueError(
                f"Backbone {backbone.name!r} has neither a bias nor batch norm with one that a task could learn; use "
                "another backbone, or another method, such as piggyback."
            )
        model, copies = copy_layers(backbone.model, settings_of)
        for copy, layer in copies:
            share_variables(copy, layer, own=("bias", *norm.trained_weights) if has_own(layer) else ())
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        group = super().variable_group(path, layer)
        return "adapter" if group == "weights" else group
