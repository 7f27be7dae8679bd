"""Training: optimisers, schedules, resume, devices."""

from piggyback_tf.training.backup import finish_training
from piggyback_tf.training.config import TrainConfig
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.fit import InputConfig, TrainedTask, train_task
from piggyback_tf.training.optimizers import FlipLimitedAdam, make_optimizer
from piggyback_tf.training.run_folder import check_settings, run_folder
from piggyback_tf.training.schedules import WarmupSchedule
from piggyback_tf.training.settings import RunConfig, complete, complete_run
from piggyback_tf.training.strategies import STRATEGIES, make_strategy

__all__ = [
    "STRATEGIES",
    "FlipLimitedAdam",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "TrainedTask",
    "TrainingError",
    "WarmupSchedule",
    "check_settings",
    "complete",
    "complete_run",
    "finish_training",
    "make_optimizer",
    "make_strategy",
    "run_folder",
    "train_task",
]
