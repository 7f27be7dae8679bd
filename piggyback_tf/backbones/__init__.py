"""Pretrained networks behind one interface: RGB images in [0, 255] in, feature vectors out.

Names are looked up when they are first used, so that listing the backbones does not load TensorFlow.
"""

import importlib

_HOMES = {
    "Backbone": "backbone",
    "load_backbone": "backbone",
    "model_hash": "hashing",
    "WeightsError": "errors",
    "list_backbones": "registry",
    "register_backbone": "registry",
    "BackboneEntry": "registry",
    "canonical_names": "paths",
    "is_container": "paths",
    "layer_weights": "paths",
    "named_layers": "paths",
    "named_variables": "paths",
    "rename_layers": "paths",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
