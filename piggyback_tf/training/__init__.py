"""Training: optimisers, schedules, resume, devices.

Names are looked up when they are first used: to look after the folder of a run needs no TensorFlow.
"""

from piggyback_tf.file_names import folders_of_methods
from piggyback_tf.lazy import lazy_names
from piggyback_tf.settings import STRATEGIES, InputConfig, RunConfig, TrainConfig, complete, complete_run
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.run_folder import check_file_name, check_settings, run_folder

_HOMES = {
    "TrainedTask": "fit",
    "TrustRegionAdam": "trust_region",
    "WarmupSchedule": "schedules",
    "check_found": "same_base_and_data",
    "describe_tasks": "same_base_and_data",
    "finish_training": "backup",
    "make_optimizer": "optimizers",
    "make_strategy": "strategies",
    "mask_rate": "schedules",
    "prepare_devices": "strategies",
    "train_task": "fit",
}

__all__ = [
    "STRATEGIES",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "TrainedTask",
    "TrainingError",
    "TrustRegionAdam",
    "WarmupSchedule",
    "check_file_name",
    "check_found",
    "check_settings",
    "complete",
    "complete_run",
    "describe_tasks",
    "finish_training",
    "folders_of_methods",
    "make_optimizer",
    "make_strategy",
    "mask_rate",
    "prepare_devices",
    "run_folder",
    "train_task",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
