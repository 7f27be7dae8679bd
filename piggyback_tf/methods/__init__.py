"""Methods of learning a task: a file each, which registers it. Parts that methods share are in `parts/`."""

from piggyback_tf.methods.base import METHODS, Method, trained_norm
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.registry import import_modules
from piggyback_tf.settings.methods import VARIABLE_GROUPS, MethodConfig, NormConfig

import_modules(__name__, __path__)

__all__ = [
    "METHODS",
    "VARIABLE_GROUPS",
    "Memory",
    "Method",
    "MethodConfig",
    "NormConfig",
    "trained_norm",
]
