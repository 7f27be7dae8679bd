"""Methods of learning a task; each file registers itself."""

from piggyback_tf.methods.base import METHODS, VARIABLE_GROUPS, Method, MethodConfig, copy_of_base
from piggyback_tf.methods.classifier_only import ClassifierOnly
from piggyback_tf.methods.finetune import Finetune, FinetuneConfig
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig

__all__ = [
    "METHODS",
    "VARIABLE_GROUPS",
    "ClassifierOnly",
    "Finetune",
    "FinetuneConfig",
    "Method",
    "MethodConfig",
    "Piggyback",
    "PiggybackConfig",
    "copy_of_base",
]
