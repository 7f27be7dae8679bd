"""Pretrained networks behind one interface: RGB images in [0, 255] in, feature vectors out.

Names are looked up when they are first used, so that listing the backbones does not load TensorFlow.
"""

from piggyback_tf.lazy import lazy_names

_HOMES = {
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "Structure": "structure_record",
    "model_hash": "weights_hash",
    "model_structure": "structure_text",
    "WeightsError": "errors",
    "list_backbones": "registry",
    "register_backbone": "registry",
    "BackboneEntry": "registry",
    "batch_norm_paths": "paths",
    "canonical_names": "paths",
    "copy_weights": "paths",
    "finalize_layers": "paths",
    "is_batch_norm": "paths",
    "is_container": "paths",
    "layer_weights": "paths",
    "named_layers": "paths",
    "named_variables": "paths",
    "rename_layers": "paths",
}

__all__ = sorted(_HOMES)

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
