"""Resume: the whole state of a training in one file, written whole or not at all."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from piggyback_tf.files import atomic_file
from piggyback_tf.masking.sharing import BaseVariable
from piggyback_tf.training.errors import TrainingError

STATE_FILE = "training_state.safetensors"


@dataclasses.dataclass
class Progress:
    """How far a training is.

    Attributes:
        epochs_done: Completed epochs.
        best_epoch: The epoch, counted from 0, with the lowest validation error (then loss, then the earliest), or -1.
        best_score: Its `[validation error, validation loss]`.
        history: Values per completed epoch by name, such as `"loss"`, `"error"`, `"val_loss"`, `"val_error"`.
        seconds: Time spent in completed epochs, over all starts of the training.
    """

    epochs_done: int = 0
    best_epoch: int = -1
    best_score: list[float] = dataclasses.field(default_factory=list)
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


class BackupAndRestore(keras.callbacks.Callback):
    """Saves the training after every epoch and can put it back as it was.

    Unlike the callback of this name in Keras it keeps the states of the random layers, the best epoch, its weights
    and the history, writes its file atomically, and leaves out the frozen base. With random operations of the input
    derived from (seed, epoch, index), a resumed training takes the same steps as one that was never interrupted.

    Args:
        folder: Where the state file is kept; None keeps the best weights in memory only.
        first_best_epoch: The first epoch, counted from 0, that may be the best one.
    """

    def __init__(self, folder: Path | None, first_best_epoch: int = 0):
        super().__init__()
        self._first_best_epoch = first_best_epoch
        self.path = folder / STATE_FILE if folder else None
        self.progress = Progress()
        self._best: dict[str, np.ndarray] = {}
        self._started = 0.0

    def epochs_done(self) -> int:
        """Returns the number of completed epochs that the file holds, which is the epoch to go on with.

        Raises:
            TrainingError: If the file is damaged.
        """
        if self.path is None or not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="np") as state:
                return int(_progress(state).epochs_done)
        except Exception as error:
            raise self._unreadable(error) from error

    def restore(self) -> None:
        """Puts model, optimiser and progress back as the file says, if there is one.

        Raises:
            TrainingError: If the file is damaged or belongs to another model.
        """
        if self.path is None or not self.path.exists():
            return
        variables = self._variables()
        try:
            with safe_open(self.path, framework="np") as state:
                progress = _progress(state)
                names = set(state.keys())
                wanted = {f"now/{name}" for name in variables}
                if {name for name in names if name.startswith("now/")} != wanted:
                    raise TrainingError(
                        f"The saved state {self.path} belongs to another model. Delete the output folder or choose "
                        "another one to start anew."
                    )
                for name, variable in variables.items():
                    variable.assign(state.get_tensor(f"now/{name}"))
                self._best = {name[5:]: state.get_tensor(name) for name in names if name.startswith("best/")}
        except TrainingError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error
        self.progress = progress

    def restore_best(self) -> None:
        """Puts the weights of the best epoch into the model."""
        for name, variable in self._learned().items():
            variable.assign(self._best[name])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        progress = self.progress
        for name, value in (logs or {}).items():
            progress.history.setdefault(name, []).append(float(value))
        score = [float(logs["val_error"]), float(logs["val_loss"])]
        if epoch >= self._first_best_epoch and (progress.best_epoch < 0 or score < progress.best_score):
            progress.best_epoch, progress.best_score = epoch, score
            self._best = {name: _to_numpy(variable) for name, variable in self._learned().items()}
        progress.epochs_done = epoch + 1
        progress.seconds += time.perf_counter() - self._started
        if self.path is not None:
            self._save()

    def _save(self) -> None:
        tensors = {f"now/{name}": _to_numpy(variable) for name, variable in self._variables().items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        with atomic_file(self.path) as temporary:
            save_file(tensors, temporary, metadata={"progress": json.dumps(dataclasses.asdict(self.progress))})

    def _unreadable(self, error: Exception) -> TrainingError:
        return TrainingError(
            f"The saved state {self.path} cannot be read ({error}). Delete the output folder or choose another one to "
            "start anew."
        )

    def _learned(self) -> dict[str, keras.Variable]:
        """Every weight of the model that is not the shared base's, by its place in the model."""
        own = [variable for variable in self.model.weights if not isinstance(variable, BaseVariable)]
        return {str(place): variable for place, variable in enumerate(own)}

    def _variables(self) -> dict[str, keras.Variable]:
        """Everything whose value decides how the training goes on, by its place in model and optimiser."""
        seeds = {id(v) for v in self.model.variables} - {id(v) for v in self.model.weights}
        random = [variable for variable in self.model.variables if id(variable) in seeds]
        return (
            {f"model/{name}": variable for name, variable in self._learned().items()}
            | {f"random/{i}": variable for i, variable in enumerate(random)}
            | {f"optimizer/{i}": variable for i, variable in enumerate(self.model.optimizer.variables)}
        )


def finish_training(folder: Path) -> None:
    """Removes the state of a training whose result is written."""
    (folder / STATE_FILE).unlink(missing_ok=True)


def _progress(state: Any) -> Progress:
    return Progress(**json.loads(state.metadata()["progress"]))


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    # A copy: the array that Keras returns may share the memory of the variable, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))
