"""Methods of learning a task; each file of this folder registers its own."""

from piggyback_tf.methods.base import (
    METHODS,
    VARIABLE_GROUPS,
    Method,
    MethodConfig,
    NormConfig,
    check_finite,
    copy_of_base,
    option,
)
from piggyback_tf.methods.memory import Memory
from piggyback_tf.registry import import_modules

import_modules(__name__, __path__)

__all__ = [
    "METHODS",
    "VARIABLE_GROUPS",
    "Memory",
    "Method",
    "MethodConfig",
    "NormConfig",
    "check_finite",
    "copy_of_base",
    "option",
]
