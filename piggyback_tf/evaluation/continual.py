"""Measures of learning tasks one after another, from the matrix of errors."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence


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


def read_matrix(metrics: Mapping[str, object]) -> ErrorMatrix:
    """Returns the matrix of what a sequence wrote as `metrics.json`."""
    steps: Sequence[Mapping[str, Mapping[str, float]]] = [step["errors"] for step in metrics["steps"]]
    return ErrorMatrix(
        tuple(metrics["tasks"]), tuple({task: found["top1_error"] for task, found in step.items()} for step in steps)
    )
