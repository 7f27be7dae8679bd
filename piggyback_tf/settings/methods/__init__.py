"""The settings of methods, each under the method's name; each file of this folder registers its own."""

from piggyback_tf.registry import import_modules
from piggyback_tf.settings.methods.base import (
    CONFIGS,
    VARIABLE_GROUPS,
    MethodConfig,
    NormConfig,
    OptionalNormConfig,
    TrainedNetworkConfig,
    check_is_for,
    check_learns,
)

import_modules(__name__, __path__)

__all__ = [
    "CONFIGS",
    "VARIABLE_GROUPS",
    "MethodConfig",
    "NormConfig",
    "OptionalNormConfig",
    "TrainedNetworkConfig",
    "check_is_for",
    "check_learns",
]
