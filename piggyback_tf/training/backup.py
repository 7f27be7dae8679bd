"""Resume: the whole state of a training in one file, written whole or not at all."""

import collections
import dataclasses
import json
import math
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import safe_open

from piggyback_tf.backbones import named_layers, named_variables
from piggyback_tf.file_names import STATE_FILE
from piggyback_tf.files import write_arrays
from piggyback_tf.surgery import BaseVariable
from piggyback_tf.training.completed_epochs import CompletedEpochs, read_completed
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.team import Team


class BackupAndRestore(keras.callbacks.Callback):
    """Saves the training after every epoch and can put it back as it was.

    Unlike the callback of this name in Keras it keeps the states of the random layers, the best epoch, its weights
    and the history, writes its file atomically, and leaves out the frozen base. With random operations of the input
    derived from (seed, epoch, index), a resumed training takes the same steps as one that was never interrupted.

    Args:
        folder: Where the state file is kept; None keeps the best weights in memory only.
        first_best_epoch: The first epoch, counted from 0, that may be the best one.
        team: The machines of the training, of which the chief alone has the file, and saves.
    """

    def __init__(self, folder: Path | None, first_best_epoch: int = 0, team: Team | None = None):
        super().__init__()
        self._first_best_epoch = first_best_epoch
        self._team = team or Team()
        self.path = folder / STATE_FILE if folder else None
        self.completed = CompletedEpochs()
        self._best: dict[str, np.ndarray] = {}
        self._started = 0.0

    def epochs_done(self) -> int:
        """Returns the number of completed epochs that the file holds, which is the epoch to go on with.

        Of several machines each gets the file.

        Raises:
            TrainingError: If the file is damaged.
        """
        done = self._team.agree(self._epochs_done() if self._team.is_chief else None)
        if done and self.path is not None:
            self._team.share_file(self.path)
        return done

    def _epochs_done(self) -> int:
        if self.path is None or not self.path.exists():
            return 0
        try:
            with safe_open(self.path, framework="np") as state:
                return int(read_completed(state).epochs_done)
        except Exception as error:
            raise self._unreadable(error) from error

    def restore(self) -> None:
        """Puts model, optimiser and progress back as the file says, if there is one.

        Raises:
            TrainingError: If the file is damaged or belongs to another model.
        """
        if self.path is None or not self.path.exists():
            return
        variables = training_variables(self.model)
        try:
            with safe_open(self.path, framework="np") as state:
                completed = read_completed(state)
                shapes = {key: tuple(state.get_slice(key).get_shape()) for key in state.keys()}  # noqa: SIM118
                keys = _numbers(variables) if "now/model/0" in shapes else {name: name for name in variables}
                wanted = {f"now/{keys[name]}": tuple(variable.shape) for name, variable in variables.items()}
                if {key: shape for key, shape in shapes.items() if key.startswith("now/")} != wanted:
                    raise TrainingError(
                        f"The saved state {self.path} belongs to another model. Delete the output folder or choose "
                        "another one to start anew."
                    )
                for name, variable in variables.items():
                    variable.assign(state.get_tensor(f"now/{keys[name]}"))
                best = {name: f"best/{keys[f'model/{name}'].removeprefix('model/')}" for name in _learned(self.model)}
                self._best = {name: state.get_tensor(key) for name, key in best.items() if key in shapes}
        except TrainingError:
            raise
        except Exception as error:
            raise self._unreadable(error) from error
        self.completed = completed

    def restore_best(self) -> None:
        """Puts the weights of the best epoch into the model."""
        for name, variable in _learned(self.model).items():
            variable.assign(self._best[name])

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        completed = self.completed
        for name, value in (logs or {}).items():
            completed.history.setdefault(name, []).append(float(value))
        score = [float(logs["val_error"]), float(logs["val_loss"])]
        better = completed.best_epoch < 0 or _rank(score) < _rank(completed.best_score)
        if epoch >= self._first_best_epoch and better:
            completed.best_epoch, completed.best_score = epoch, score
            self._best = {name: _to_numpy(variable) for name, variable in _learned(self.model).items()}
        completed.epochs_done = epoch + 1
        completed.seconds += time.perf_counter() - self._started
        if self.path is not None and self._team.is_chief:
            with self._team.writing:
                self._save()

    def _save(self) -> None:
        tensors = {f"now/{name}": _to_numpy(variable) for name, variable in training_variables(self.model).items()}
        tensors |= {f"best/{name}": value for name, value in self._best.items()}
        write_arrays(self.path, tensors, {"progress": json.dumps(dataclasses.asdict(self.completed))})

    def _unreadable(self, error: Exception) -> TrainingError:
        return TrainingError(
            f"The saved state {self.path} cannot be read ({error}). Delete the output folder or choose another one to "
            "start anew."
        )


def training_variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns everything whose value decides how the training of a compiled model goes on.

    Keys are `"model/PATH"` with the canonical path of a weight that is not the shared base's, `"random/LAYER/seed"`,
    and of optimisers `"optimizer/NAME"`, `"optimizer/GROUP/NAME"` or `"optimizer/GROUP/PATH/NAME"`. So what belongs
    together has one name in every version of the model's code and whatever was built before in the process.

    Raises:
        ValueError: If the model has weights that are in none of its layers.
    """
    return (
        {f"model/{path}": variable for path, variable in _learned(model).items()}
        | {f"random/{name}": variable for name, variable in _random_states(model).items()}
        | {f"optimizer/{name}": variable for name, variable in _optimizer_states(model).items()}
    )


def _learned(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns every weight of a model that is not the shared base's by its canonical path, in the model's order."""
    paths = {id(variable): path for path, variable in named_variables(model).items()}
    own = [variable for variable in model.weights if not isinstance(variable, BaseVariable)]
    if strange := [variable.path for variable in own if id(variable) not in paths]:
        raise ValueError(f"Model {model.name!r} has a weight in none of its layers, {strange[0]!r}; put it into one.")
    return {paths[id(variable)]: variable for variable in own}


def _random_states(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the states of random layers by the canonical path of the layer, in the model's order."""
    names = {}
    for path, layer in named_layers(model):
        weights = {id(variable) for variable in layer.weights}
        states = [variable for variable in layer.variables if id(variable) not in weights]
        names |= {id(v): f"{path}/seed_{number}" if number else f"{path}/seed" for number, v in enumerate(states)}
    weights = {id(variable) for variable in model.weights}
    return {names[id(variable)]: variable for variable in model.variables if id(variable) not in weights}


def _optimizer_states(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the variables of a model's optimisers by name, in the optimiser's order."""
    paths = {variable.path.replace("/", "_"): path for path, variable in named_variables(model).items()}
    names: dict[int, str] = {}
    taken: collections.Counter[str] = collections.Counter()

    def visit(optimizer: keras.optimizers.Optimizer, prefix: str) -> None:
        for inner in getattr(optimizer, "optimizers", ()):  # A MultiOptimizer's, each with the name of its group.
            visit(inner, f"{prefix}{inner.name}/")
        if hasattr(optimizer, "inner_optimizer"):  # What Keras puts around an optimiser for half precision.
            visit(optimizer.inner_optimizer, prefix)
            prefix += "loss_scale/"
        for variable in optimizer.variables:
            if id(variable) not in names:
                name = prefix + _state_name(variable.name, paths)
                names[id(variable)] = f"{name}_{taken[name]}" if taken[name] else name
                taken[name] += 1

    visit(model.optimizer, "")
    return {names[id(variable)]: variable for variable in model.optimizer.variables}


def _state_name(name: str, paths: Mapping[str, str]) -> str:
    """Returns the name of an optimiser's variable, with the canonical path of the weight that it belongs to.

    Args:
        name: The variable's own name: that of the weight, as Keras has it with `_` for `/`, and what it is.
        paths: The canonical path of each weight by its name.
    """
    for place in reversed([place for place, sign in enumerate(name) if sign == "_"]):
        if name[:place] in paths:
            return f"{paths[name[:place]]}/{name[place + 1 :]}"
    # Keras numbers what has no name through the process.
    return "variable" if re.fullmatch(r"variable(_\d+)?", name) else name


def _numbers(names: Iterable[str]) -> dict[str, str]:
    """Returns what the first version called each of the `training_variables`: their numbers among those of a kind."""
    counts: collections.Counter[str] = collections.Counter()
    numbers = {}
    for name in names:
        kind = name.partition("/")[0]
        numbers[name] = f"{kind}/{counts[kind]}"
        counts[kind] += 1
    return numbers


def _rank(score: Iterable[float]) -> list[float]:
    """Returns what scores are compared by: one that is no number is above all that are."""
    return [math.inf if math.isnan(value) else value for value in score]


def finish_training(folder: Path) -> None:
    """Removes the state of a training whose result is written."""
    (folder / STATE_FILE).unlink(missing_ok=True)


def _to_numpy(variable: keras.Variable) -> np.ndarray:
    # A copy: the array that Keras returns may share the memory of the variable, which the next step overwrites.
    return np.array(keras.ops.convert_to_numpy(variable))
