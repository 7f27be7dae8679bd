"""Settings of a training: the fields become the command-line flags of the same names."""

import dataclasses

from piggyback_tf.settings.methods import VARIABLE_GROUPS
from piggyback_tf.settings.records import check_choice, check_finite, check_integer, option

OPTIMIZERS = ("adam", "sgd")
# Keras takes no larger one.
LARGEST_SEED = 2**32 - 1
SCHEDULES = ("cosine", "step", "constant")
# In which type gradients of masks go from machine to machine.
MASK_GRADIENTS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a task is trained, whatever the method.

    Raises:
        ValueError: If a value is out of its range; the message names the field and the valid values.
    """

    epochs: int = option(10, "Passes over the training images.")
    batch_size: int = option(32, "Images per step, over all devices.")
    seed: int = option(0, "Seed of initial values, order of images, augmentation, dropout.")
    schedule: str = option("cosine", "Learning rates over time. cosine: to 0; step: x step_decay; constant.")
    step_epochs: int = option(0, "schedule=step: epochs between two decays; 0: half of all.")
    step_decay: float = option(0.1, "schedule=step: factor of each decay.")
    warmup_steps: int = option(
        -1,
        "Warm-up of all but the head, at most 3/8 of all steps; -1: a tenth.",
        groups=[group for group in VARIABLE_GROUPS if group != "head"],
    )
    mask_optimizer: str = option("adam", "Optimiser of the masks: adam or sgd.")
    mask_lr: float = option(0.0, "Learning rate of the masks; 0: from the number of steps.")
    mask_epsilon: float = option(
        1e-6,
        "Epsilon of the masks' adam. It is not small beside their gradients, so weights that hardly matter move less.",
    )
    mask_trust: float = option(
        0.1,
        "Limit of a step's predicted gain, as a part of the loss; a tenth of it with label maps and boxes; 0: none.",
        before=0.0,
    )
    # Without trust it means nothing. So that of runs from before is any, and need not be given to go on with one.
    mask_budget: float = option(1.0, "Limit of flips in a training, as a part of all weights.", before=1.0)
    mask_gradients: str = option(
        "float32",
        "multi_worker sends them as float32 or bfloat16.",
        before="float32",
    )
    head_optimizer: str = option("adam", "Optimiser of the head: adam or sgd.")
    head_lr: float = option(0.0, "Learning rate of the head; 0: from the number of features.")
    norm_optimizer: str = option("adam", "Optimiser of trained batch norm: adam or sgd.")
    norm_lr: float = option(1e-3, "Learning rate of trained batch norm.")
    weights_optimizer: str = option("adam", "Optimiser of trained weights: adam or sgd.")
    weights_lr: float = option(1e-4, "Learning rate of trained weights.")
    adapter_optimizer: str = option("adam", "Optimiser of added layers: adam or sgd.")
    adapter_lr: float = option(1e-3, "Learning rate of layers that a method adds.")
    sgd_momentum: float = option(0.9, "Momentum wherever the optimiser is sgd.")
    adam_epsilon: float = option(1e-7, "Epsilon of adam, except for masks (1e-8 in PyTorch).")
    chance_epochs: int = option(
        3,
        "Stop after this many epochs (and 20 steps) at chance level, or if the network collapses; 0: never.",
        recorded=False,
    )

    def __post_init__(self) -> None:
        check_finite(self)
        least = {"epochs": 1, "batch_size": 1, "step_epochs": 0, "chance_epochs": 0, "seed": 0}
        for name, value in least.items():
            check_integer(name, getattr(self, name), value)
        if self.seed > LARGEST_SEED:
            raise ValueError(f"seed must be an integer of at most {LARGEST_SEED}. Received: seed={self.seed}.")
        for name in ("mask_lr", "head_lr", "mask_trust", "mask_budget"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative. Received: {name}={getattr(self, name)}.")
        rates = (f"{group}_lr" for group in VARIABLE_GROUPS if group not in ("mask", "head"))
        for name in (*rates, "mask_epsilon", "adam_epsilon", "step_decay"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0. Received: {name}={getattr(self, name)}.")
        if not 0 <= self.sgd_momentum < 1:
            raise ValueError(f"`sgd_momentum` must be in [0, 1). Received: sgd_momentum={self.sgd_momentum}.")
        choices = {"schedule": SCHEDULES, "mask_gradients": MASK_GRADIENTS} | dict.fromkeys(
            (f"{group}_optimizer" for group in VARIABLE_GROUPS), OPTIMIZERS
        )
        for name, valid in choices.items():
            check_choice(name, getattr(self, name), valid)
