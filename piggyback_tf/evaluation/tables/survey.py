"""The survey: what each method gives and takes, a row a method and order of tasks."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from piggyback_tf.evaluation.results import learned_steps
from piggyback_tf.evaluation.tables.cells import Cell, Number, Table, mean
from piggyback_tf.evaluation.tables.runs import Record, TableError
from piggyback_tf.evaluation.tables.variants import all_tasks, by_seed, name_bases, name_variants, one_base, order_sign
from piggyback_tf.evaluation.text import main_error
from piggyback_tf.top_k import Z95

_LEGEND = (
    "Errors are top-1 test errors after all tasks were learned: mean ± standard deviation over seeds where there are "
    "several.",
    "95 % ±: half of the 95 % interval of the mean error, as the number of test images gives it: 1.96 sqrt(sum of "
    "p (100 - p) / images) / tasks. All seeds are measured on the same images, and do not narrow it.",
    "Forgetting, backward and forward transfer are in points of accuracy. Added: bytes besides the base, with packs of "
    "a bit for each weight of a mask, and compressed; below 0 where a network that replaces the base is smaller than "
    "it. System: base and all that was added, uncompressed. Learning: what only the learning of further tasks needs, "
    "such as kept images.",
    "Trained parameters and time are sums over all trainings; multiply-adds are relative to those of classifier_only.",
)
_AGNOSTIC = (
    "Task id: images whose task was inferred rightly; class-incremental: errors where task and class are inferred."
)
_ARROWS = "↓: tasks learned in the order of the columns, ↑: in reverse."


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a seed of a method gave: one sequence, or runs with a task each.

    Attributes:
        records: The sequence, or the runs.
    """

    records: Sequence[Record]

    @property
    def sequence(self) -> Mapping[str, Any]:
        """What `run_sequence` returned; empty if the tasks were learned in runs of their own."""
        return self.records[0].sequence if self.records[0].in_turn else {}

    def error(self, task: str) -> float | None:
        """Returns the test error of a task."""
        found = [
            record.errors[task][main_error(record.errors[task])] for record in self.records if task in record.errors
        ]
        return found[0] if found else None

    def measure(self, name: str) -> float | None:
        """Returns a measure of the sequence."""
        return self.sequence.get("measures", {}).get(name)

    @property
    def agnostic(self) -> Mapping[str, Mapping[str, float]]:
        """The measures of answering without being told the task, by the way in which it is inferred."""
        return self.sequence.get("task_agnostic") or {}

    def inferred(self, kind: str, name: str) -> float | None:
        """Returns one of the measures in `agnostic`."""
        return self.agnostic.get(kind, {}).get(name)

    def added(self, coding: str) -> int | None:
        """Returns the bytes besides the base: `coding` is `"system"`, for plain packs, or `"compressed"`."""
        sizes = [record.sizes for record in self.records]
        if any(size is None or size[coding] is None for size in sizes):
            return None
        return sum(size[coding] - size["base"] for size in sizes)

    @property
    def system(self) -> int | None:
        """The bytes of base and tasks."""
        added = self.added("system")
        return None if added is None else self.records[0].sizes["base"] + added

    @property
    def learning(self) -> int | None:
        """The bytes that only learning further tasks needs, after the last one."""
        sequences = [record.sequence for record in self.records]
        sizes = [found["steps"][-1].get("bytes", {}).get("learning") if found else None for found in sequences]
        return None if None in sizes else sum(sizes)

    @property
    def trained_parameters(self) -> int | None:
        """How many parameters were trained, all trainings together."""
        steps = [step for record in self.records for _, step in learned_steps(record.sequence)]
        counts = [step.get("trained_parameters") for step in steps]
        return None if None in counts else sum(counts)

    @property
    def multiply_adds(self) -> float | None:
        """Multiplications with an addition for an image, the mean of the tasks."""
        costs = [record.sequence["steps"][-1].get("multiply_adds") for record in self.records]
        return None if None in costs else statistics.fmean(count for cost in costs for count in cost.values())

    @property
    def seconds(self) -> float | None:
        """How long learning took."""
        seconds = [record.seconds for record in self.records]
        return None if None in seconds else sum(seconds)


@dataclasses.dataclass(frozen=True)
class Row:
    """A method with its settings in an order of tasks.

    Attributes:
        name: Of the method and its settings.
        method: Of the method alone.
        order: `""` for runs with a task each.
        seeds: What each seed gave.
    """

    name: str
    method: str
    order: str
    seeds: Sequence[Outcome]

    def over_seeds(self, value: Callable[[Outcome], float | None], style: str, spread: bool = False) -> Number | None:
        """Returns the mean of a value over the seeds that learned all tasks; None if one of them does not have it."""
        tasks = all_tasks(record for outcome in self.seeds for record in outcome.records)
        whole = [outcome for outcome in self.seeds if set(tasks) <= set(all_tasks(outcome.records))]
        return mean([value(outcome) for outcome in whole], style, spread)

    def mean_error(self, tasks: Sequence[str]) -> Number | None:
        """Returns the mean error of some tasks over the seeds that measured them all."""
        return mean([statistics.fmean(outcome.error(task) for task in tasks) for outcome in self._measured(tasks)])

    def half_interval(self, tasks: Sequence[str]) -> Number | None:
        """Returns half of the 95 % interval of the mean error, as it follows from the number of test images."""
        records = [record for outcome in self._measured(tasks) for record in outcome.records]
        variance = 0.0
        for task in tasks:
            errors = [record.errors[task] for record in records if task in record.errors]
            if not errors:
                return None
            name = main_error(errors[0])
            if name != "top1_error":  # Errors that are no shares of images bring their intervals.
                width = statistics.fmean(one[f"{name}_high"] - one[f"{name}_low"] for one in errors)
                variance += (width / (2 * Z95)) ** 2
                continue
            p = statistics.fmean(one["top1_error"] for one in errors)
            variance += p * (100 - p) / errors[0]["images"]
        return Number(Z95 * math.sqrt(variance) / len(tasks))

    def _measured(self, tasks: Sequence[str]) -> list[Outcome]:
        return [outcome for outcome in self.seeds if all(outcome.error(task) is not None for task in tasks)]


def survey_rows(records: Sequence[Record]) -> list[Row]:
    """Returns the rows of methods that could learn, in the order of the runs.

    Args:
        records: Runs on one base.

    Raises:
        TableError: If two runs have the same method, settings, order, task and seed.
    """
    names, tasks = name_variants(records), all_tasks(records)
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        order = order_sign(record.tasks, tasks) if record.in_turn else ""
        groups.setdefault((names[record], order), []).append(record)
    rows = []
    for (name, order), members in groups.items():
        seeds: dict[int | None, list[Record]] = {}
        for task in all_tasks(members):
            for record in by_seed(members, task):
                # Of a method that was refused with one seed, the others count.
                if not record.refused and record not in seeds.setdefault(record.seed, []):
                    seeds[record.seed].append(record)
        rows.append(Row(name, members[0].method, order, [Outcome(found) for found in seeds.values() if found]))
    # The orders of a method stand together.
    places = list(dict.fromkeys(row.name for row in rows))
    return sorted(rows, key=lambda row: places.index(row.name))


def survey(records: Sequence[Record]) -> Table:
    """Returns the survey of methods that learned tasks on one base.

    Args:
        records: The runs.

    Raises:
        TableError: If they are on different bases, or two are the same method with the same settings and seed.
    """
    one_base(records, "Layout survey compares methods on one base", "Make a table of each.")
    tasks, rows = all_tasks(records), survey_rows(records)
    if not any(row.seeds for row in rows):
        raise TableError(f"No method of these runs could learn: {records[0].refused}")
    columns = _columns(tasks, rows)
    cells = [[column(row) if row.seeds else None for column in columns.values()] for row in rows]
    table = Table(
        "survey",
        f"Methods on {next(iter(name_bases(records).values()))}",
        ["method", "order", *columns],
        [[row.name, row.order, *found] for row, found in zip(rows, cells, strict=True)],
        left=2,
        notes=[
            *_refusals(records),
            *([_ARROWS] if any(row.order in ("↓", "↑") for row in rows) else []),
            *_LEGEND,
            *([_AGNOSTIC] if any(one.agnostic for row in rows for one in row.seeds) else []),
        ],
    )
    return table.without_empty_columns()


def _columns(tasks: Sequence[str], rows: Sequence[Row]) -> dict[str, Callable[[Row], Cell]]:
    """Returns what stands in each column of a row, by the column's title."""
    baseline = [row for row in rows if row.method == "classifier_only" and row.seeds]
    base_cost = baseline[0].over_seeds(lambda one: one.multiply_adds, "count") if baseline else None

    def cost(outcome: Outcome) -> float | None:
        known = base_cost is not None and outcome.multiply_adds is not None
        return outcome.multiply_adds / base_cost.value if known else None

    def over_seeds(value: Callable[[Outcome], float | None], style: str, spread: bool = False) -> Callable[[Row], Cell]:
        return lambda row: row.over_seeds(value, style, spread)

    def inferred(kind: str, name: str) -> Callable[[Row], Cell]:
        return over_seeds(lambda one: one.inferred(kind, name), "percent", True)

    def measured(name: str) -> Callable[[Row], Cell]:
        return over_seeds(lambda one: one.measure(name), "percent", True)

    def error_of(task: str) -> Callable[[Row], Cell]:
        return lambda row: row.mean_error([task])

    columns: dict[str, Callable[[Row], Cell]] = {
        "seeds": lambda row: Number(len(row.seeds), style="count"),
        **{f"{task} %": error_of(task) for task in tasks},
        "mean %": lambda row: row.mean_error(tasks),
        "95 % ±": lambda row: row.half_interval(tasks),
    }
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        columns[name.replace("_", " ")] = measured(name)
    for kind in dict.fromkeys(kind for row in rows for one in row.seeds for kind in one.agnostic):
        columns[f"task id %, {kind}"] = inferred(kind, "task_id_accuracy")
        columns[f"class-incremental %, {kind}"] = inferred(kind, "class_incremental_error")
    return columns | {
        "added": over_seeds(lambda one: one.added("system"), "bytes"),
        "compressed": over_seeds(lambda one: one.added("compressed"), "bytes"),
        "system": over_seeds(lambda one: one.system, "bytes"),
        "learning": over_seeds(lambda one: one.learning, "bytes"),
        "trained parameters": over_seeds(lambda one: one.trained_parameters, "count"),
        "multiply-adds": over_seeds(cost, "ratio"),
        "time": over_seeds(lambda one: one.seconds, "seconds"),
    }


def _refusals(records: Sequence[Record]) -> list[str]:
    """Returns a sentence for each reason for which a method did not learn."""
    names = name_variants(records)
    seeds: dict[tuple[str, str], list[str]] = {}
    for record in records:
        if record.refused:
            seeds.setdefault((names[record], record.refused), []).append(str(record.seed))
    return [f"{name}, seed {', '.join(dict.fromkeys(found))}: {reason}" for (name, reason), found in seeds.items()]
