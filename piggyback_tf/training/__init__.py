"""Training: optimisers, schedules, resume, devices."""

from piggyback_tf.training.backup import finish_training
from piggyback_tf.training.config import TrainConfig
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.fit import InputConfig, TrainedTask, train_task
from piggyback_tf.training.found import check_found
from piggyback_tf.training.optimizers import make_optimizer, mask_rate
from piggyback_tf.training.run_folder import check_settings, run_folder
from piggyback_tf.training.schedules import WarmupSchedule
from piggyback_tf.training.settings import RunConfig, complete, complete_run
from piggyback_tf.training.strategies import STRATEGIES, make_strategy
from piggyback_tf.training.trust_region import TrustRegionAdam

__all__ = [
    "STRATEGIES",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "TrainedTask",
    "TrainingError",
    "TrustRegionAdam",
    "WarmupSchedule",
    "check_found",
    "check_settings",
    "complete",
    "complete_run",
    "finish_training",
    "make_optimizer",
    "make_strategy",
    "mask_rate",
    "run_folder",
    "train_task",
]
