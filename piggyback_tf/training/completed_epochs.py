"""How far a training is that is not done, as its state file says; read without Keras."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from piggyback_tf.training.errors import TrainingError


@dataclasses.dataclass
class CompletedEpochs:
    """How far a training is, and what its completed epochs came to.

    Attributes:
        epochs_done: Completed epochs.
        best_epoch: The epoch, counted from 0, with the lowest validation error (then loss, of which NaN is the highest,
            then the earliest), or -1.
        best_score: Its `[validation error, validation loss]`.
        history: Values per completed epoch by name, such as `"loss"`, `"error"`, `"val_loss"`, `"val_error"`.
        seconds: Time spent in completed epochs, over all starts of the training.
    """

    epochs_done: int = 0
    best_epoch: int = -1
    best_score: list[float] = dataclasses.field(default_factory=list)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


def read_completed(state: Any) -> CompletedEpochs:
    """Returns what an open state file says of the training."""
    return CompletedEpochs(**json.loads(state.metadata()["progress"]))


def completed_epochs(path: Path) -> CompletedEpochs:
    """Returns what a state file says of the training.

    Raises:
        TrainingError: If it is damaged.
        OSError: If it cannot be read.
    """
    try:
        with safe_open(path, framework="np") as state:
            return read_completed(state)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"The saved state {path} cannot be read ({error}).") from error


def history_in_percent(history: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Returns a history as results have it: errors, which are fractions while a training goes on, in percent."""
    return {
        name: [100 * value for value in values] if name.endswith("error") else list(values)
        for name, values in history.items()
    }
