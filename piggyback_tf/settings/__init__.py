"""Settings as fields of config dataclasses, and their records.

Nothing here imports TensorFlow or Keras, so that a command line is checked, and help is given, at once.
"""

from piggyback_tf.settings.inputs import InputConfig
from piggyback_tf.settings.masks import MaskConfig
from piggyback_tf.settings.methods import CONFIGS, VARIABLE_GROUPS, MethodConfig, NormConfig, TrainedNetworkConfig
from piggyback_tf.settings.records import check_finite, option, write_record
from piggyback_tf.settings.run import (
    PRECISIONS,
    RETIRED,
    STRATEGIES,
    RunConfig,
    complete,
    complete_run,
    record_run,
    settings_of,
)
from piggyback_tf.settings.training import TrainConfig

__all__ = [
    "CONFIGS",
    "PRECISIONS",
    "RETIRED",
    "STRATEGIES",
    "VARIABLE_GROUPS",
    "InputConfig",
    "MaskConfig",
    "MethodConfig",
    "NormConfig",
    "RunConfig",
    "TrainConfig",
    "TrainedNetworkConfig",
    "check_finite",
    "complete",
    "complete_run",
    "option",
    "record_run",
    "settings_of",
    "write_record",
]
