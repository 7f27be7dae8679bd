"""What a run was found to be worth: the one shape of `metrics.json` and `result.json`, and what older versions wrote.

A run is of one or several methods, each of which learned the same tasks in turn; a single task is a sequence of length
one. All errors are in percent, those of the history too. `metrics.json` holds

- `"format"`: the number of the shape, `FORMAT`;
- `"methods"`: the sequence of each method by its name, that of the run's own method last;
- `"data"`: where the images of each task came from, by task, where that is known;
- `"left_out"`, `"skipped_images"`: what each split was left without, and how many files that are, by task.

A sequence, as `run_sequence` returns it, holds

- `"method"`, `"tasks"` in the order of learning, `"base_hash"`, and `"sequential"`: whether the order matters;
- `"steps"`: what was measured after each task, see below;
- `"measures"`: see `continual.measures`;
- `"task_agnostic"`, of several tasks: see `task_agnostic_measures`;
- `"alone"`, if that was asked for: the step of each task but the first as if it were the first, by task.

A step, which is what `result.json` of a task holds, beside `"format"`, has

- `"errors"`: those of all learned tasks on their test splits, by task, as from `evaluate`; `"answers"`, a digest of all
  answers, and `"multiply_adds"`, of an image, likewise;
- `"validation"`: the errors on the validation split of the tasks that were learned in this step, by task;
- `"bytes"`: `"base"`, `"added"` to it by all tasks, with masks as plain bits, `"compressed"`, the same as it is stored,
  `"system"`, all that is kept, and `"learning"`, what only learning needs;
- `"history"` by epoch, `"best_epoch"` from 1, `"seconds"`, `"trained_parameters"`, and `"file"`: where the task is;
- of masks `"zeros"` by layer and `"zeros_total"`, and `"start"`, if they started from others;
- `"weight_of_class"`, what each class weighed in the loss, if not all weighed the same.

The step of a task that is learned with a later one has nothing but `"errors"`, which are none.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.continual import measures
from piggyback_tf.file_names import PACK_SUFFIX
from piggyback_tf.files import write_atomically

FORMAT = 2


class ResultsError(ValueError):
    """A file of results that cannot be read; the message says which and why."""


def read_metrics(path: Path) -> dict[str, Any]:
    """Returns what a run wrote as `metrics.json`, in the shape of today.

    Raises:
        ResultsError: If the file is damaged, or of a later version.
        OSError: If it cannot be read.
    """
    return _read(path, _run_of_before)


def read_result(path: Path, task: str) -> dict[str, Any]:
    """Returns the step that the `result.json` of a task holds, in the shape of today.

    Args:
        path: The file.
        task: The task's name.

    Raises:
        ResultsError: If the file is damaged, or of a later version.
        OSError: If it cannot be read.
    """
    found = _read(path, lambda found: _step_of_before(found) if "errors" in found else _single_of_before(found, task))
    return {name: value for name, value in found.items() if name != "format"}


def read_sequence(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a sequence as `benchmarks/methods.py` keeps it, in the shape of today."""
    return dict(found) if found.get("format") == FORMAT else _sequence_of_before(found)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> None:
    """Writes the `metrics.json` of a run, whole or not at all."""
    _write(path, metrics)


def write_result(path: Path, step: Mapping[str, Any]) -> None:
    """Writes the `result.json` of a task, whole or not at all."""
    _write(path, step)


def tasks_of(metrics: Mapping[str, Any]) -> list[str]:
    """Returns the tasks of a run in the order of learning."""
    return list(next(iter(metrics["methods"].values()))["tasks"])


def learned_steps(sequence: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields the task and the step of each training of a sequence."""
    for task, step in zip(sequence["tasks"], sequence["steps"], strict=True):
        if any(step.values()):
            yield task, step


def read_json(path: Path) -> Any:
    """Returns what a file of JSON holds.

    Raises:
        ResultsError: If it is none.
        OSError: If it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ResultsError(f"{str(path)!r} is no JSON file: {error}.") from None


def _read(path: Path, of_before: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Returns what a file holds, in the shape of today."""
    found = read_json(path)
    try:
        version = found.get("format", 1)
        if version == 1:
            return of_before(found)
    except (KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{str(path)!r} does not hold what a run writes: {error!r}.") from None
    if version != FORMAT:
        raise ResultsError(
            f"{str(path)!r} has format {version!r}, and this version of piggyback_tf reads up to {FORMAT}. Use the "
            "version that wrote it."
        )
    return found


def _write(path: Path, found: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps({"format": FORMAT, **found}, indent=2) + "\n")


# ------------------------------------------------------------------------------------------------------------ version 1
# A run of one task and one of several had shapes of their own; the latter kept the errors of histories as fractions.


def _run_of_before(found: Mapping[str, Any]) -> dict[str, Any]:
    beside = {name: found[name] for name in ("left_out", "skipped_images") if name in found}
    if "steps" in found:
        sequence = {name: value for name, value in found.items() if name not in beside}
        return {"format": FORMAT, "methods": {found["method"]: _sequence_of_before(sequence)}, **beside}
    task, methods = found["task"], {}
    for name, result in found["methods"].items():
        sequence = {"method": name, "tasks": [task], "base_hash": found["base_hash"], "sequential": False}
        sequence["steps"] = [_single_of_before(result, task)]
        methods[name] = sequence | {"measures": measures(sequence)}
    data = {"data": {task: found["data"]}} if "data" in found else {}
    return {"format": FORMAT, "methods": methods, **data, **{name: {task: value} for name, value in beside.items()}}


def _sequence_of_before(found: Mapping[str, Any]) -> dict[str, Any]:
    sequence = dict(found) | {"steps": [_step_of_before(step) for step in found["steps"]]}
    if "alone" in found:
        sequence["alone"] = {task: _step_of_before(step) for task, step in found["alone"].items()}
    return sequence


def _step_of_before(found: Mapping[str, Any]) -> dict[str, Any]:
    if "history" not in found:
        return dict(found)
    history = {
        name: [100 * value for value in values] if name.endswith("error") else values
        for name, values in found["history"].items()
    }
    return dict(found) | {"history": history}


def _single_of_before(found: Mapping[str, Any], task: str) -> dict[str, Any]:
    step = {name: value for name, value in found.items() if name not in ("test", "validation", "bytes")}
    step["errors"] = {task: found["test"]} if "test" in found else {}
    step["validation"] = {task: found["validation"]} if "validation" in found else {}
    if size := found.get("bytes"):
        # What a pack takes with masks as plain bits was not measured.
        plain = None if str(found.get("file", "")).endswith(PACK_SUFFIX) else size["task"]
        system = None if plain is None else size.get("kept", size["base"]) + plain
        sizes = {"base": size["base"], "added": plain, "compressed": size["task"], "system": system}
        step["bytes"] = sizes | {"learning": 0}
    return step
