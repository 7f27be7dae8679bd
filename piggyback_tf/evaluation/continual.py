"""Measures of learning tasks one after another, from the matrix of errors."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

from piggyback_tf.evaluation.text import main_error
from piggyback_tf.settings import CONFIGS


@dataclasses.dataclass(frozen=True)
class ErrorMatrix:
    """Top-1 errors in percent of every task after each step of a sequence.

    With `a[t][i] = 100 - errors[t][i]`, the accuracy on task i after step t, and T steps.

    Attributes:
        tasks: The tasks in the order of learning.
        errors: By step, the error of each task that could be measured then; a step has no entry for a task that it
            does not know yet, and a method that learns all tasks at once has entries in its last step only.
    """

    tasks: tuple[str, ...]
    errors: tuple[Mapping[str, float], ...]

    def __post_init__(self) -> None:
        if not self.tasks or len(self.errors) != len(self.tasks):
            raise ValueError(f"There must be a step for each task. Received: {len(self.errors)}, {len(self.tasks)}.")
        if missing := [task for task in self.tasks if task not in self.errors[-1]]:
            raise ValueError(f"After the last step every task must be measured; {missing[0]!r} is not.")

    def average_error(self) -> float:
        """Returns the mean error of all tasks after the last step, in percent."""
        return statistics.fmean(self.errors[-1][task] for task in self.tasks)

    def forgetting(self) -> float | None:
        """Returns by how many points tasks are worse at the end than they were at best (Chaudhry et al., ECCV 2018).

        `1 / (T - 1) * sum over i < T of (max over t < T of a[t][i]) - a[T][i]`. It may be negative. None if no task
        was measured before the last step.
        """
        falls = []
        for task in self.tasks[:-1]:
            before = [step[task] for step in self.errors[:-1] if task in step]
            if before:
                falls.append(self.errors[-1][task] - min(before))
        return statistics.fmean(falls) if falls else None

    def backward_transfer(self) -> float | None:
        """Returns by how many points later tasks changed earlier ones (Lopez-Paz and Ranzato, NeurIPS 2017, eq. 3).

        `1 / (T - 1) * sum over i < T of a[T][i] - a[i][i]`; negative where tasks are forgotten. None if no task was
        measured just after it was learned and before the last step.
        """
        changes = [
            self.errors[place][task] - self.errors[-1][task]
            for place, task in enumerate(self.tasks[:-1])
            if task in self.errors[place]
        ]
        return statistics.fmean(changes) if changes else None

    def forward_transfer(self, alone: Mapping[str, float]) -> float | None:
        """Returns by how many points a task is better for having been learned after others.

        `1 / (T - 1) * sum over i > 1 of a[i][i] - b[i]`, with `b[i]` the accuracy of the task learned alone: the
        negative of the intransigence of Chaudhry et al. (ECCV 2018, eq. 4), whose reference is a network trained in the
        best way known. (The forward transfer of Lopez-Paz and Ranzato asks a task's answers before it was learned,
        which heads of its own that are not trained yet cannot give.) None if a task is missing in `alone`, or was not
        measured when it was learned.

        Args:
            alone: Error in percent of each task learned alone.
        """
        gains = []
        for place, task in enumerate(self.tasks):
            if place and (task not in alone or task not in self.errors[place]):
                return None
            if place:
                gains.append(alone[task] - self.errors[place][task])
        return statistics.fmean(gains) if gains else None


def read_errors(sequence: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the error of each task that was measured, after each step of a sequence."""
    return [{task: found[main_error(found)] for task, found in step["errors"].items()} for step in sequence["steps"]]


def read_matrix(sequence: Mapping[str, Any]) -> ErrorMatrix:
    """Returns the matrix of errors of a sequence."""
    return ErrorMatrix(tuple(sequence["tasks"]), tuple(read_errors(sequence)))


def measures(sequence: Mapping[str, Any]) -> dict[str, Any]:
    """Returns average error, forgetting, transfer of a sequence, and whether old answers stayed the same.

    Forward transfer is 0 for methods whose tasks know nothing of one another, since each is learned as if it were
    alone. For sequential methods it is None unless their tasks were trained alone, too, and always for methods that
    learn all tasks at once. The seconds are those of the sequence, without what was trained alone.

    Args:
        sequence: What `run_sequence` returns, without the measures. Of a task without a test split, which is learned
            by itself, all measures of errors are None.
    """
    steps = sequence["steps"]
    matrix = read_matrix(sequence) if steps[-1]["errors"] else None
    same: dict[str, set[str]] = {}
    for step in steps:
        for task, digest in step.get("answers", {}).items():
            same.setdefault(task, set()).add(digest)
    return {
        "average_error": matrix and matrix.average_error(),
        "forgetting": matrix and matrix.forgetting(),
        "backward_transfer": matrix and matrix.backward_transfer(),
        "forward_transfer": matrix and _forward_transfer(sequence, matrix),
        "old_answers_identical": all(len(digests) == 1 for digests in same.values()),
        "seconds": sum(step.get("seconds", 0.0) for step in steps),
    }


def _forward_transfer(sequence: Mapping[str, Any], matrix: ErrorMatrix) -> float | None:
    """Returns the forward transfer of a sequence, where it is known; see `measures`."""
    if len(matrix.tasks) < 2 or CONFIGS[sequence["method"]].at_once:
        return None
    if not sequence["sequential"]:
        return 0.0
    alone = {task: found["errors"][task] for task, found in sequence.get("alone", {}).items()}
    return matrix.forward_transfer({task: found[main_error(found)] for task, found in alone.items()})
