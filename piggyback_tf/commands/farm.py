"""farm: learns a table of tasks, a row each, side by side.

It loads no TensorFlow; each training is a process of `train`.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import DONE, WRONG, Answer
from piggyback_tf.commands.common import share_of_cores
from piggyback_tf.evaluation.results import ResultsError, read_metrics
from piggyback_tf.evaluation.text import format_bytes, format_error, format_table
from piggyback_tf.extras import need
from piggyback_tf.farm import FarmError, RowState, TaskRow, learn_rows, read_rows
from piggyback_tf.farm.pool import Farm
from piggyback_tf.farm.ray_cluster import Share, learn_on_ray
from piggyback_tf.farm.state import DONE as LEARNED
from piggyback_tf.farm.state import folder_of_row
from piggyback_tf.file_names import FARM_PACKS, METRICS_FILE, pack_name
from piggyback_tf.files import atomic_file, folder_lock, local_path, make_folder
from piggyback_tf.flags import ESSENTIALS, HEADINGS, define, define_flags
from piggyback_tf.foreign_text import counted, duration

FLAGS = flags.FLAGS
ENGINES = ("processes", "ray")
_TEXT = """Learns the tasks of a table. Each row is a task, and each column is a flag of `train`. The columns `task` and
`data` are required.

    task,data,epochs
    cats,folder:photos/cats,10
    birds,tfds:caltech_birds2011,

    {call} tasks.csv --output_dir=runs/farm --jobs=2 --backbone=mobilenet_v2

Flags on the command line apply to all rows. If a row has a value for the flag, the row's value counts. If you run the
same command again, it learns only the rows that are not finished.
"""
# Flags that are the farm's own.
_OF_FARMS = {"jobs", "attempts", "row", "engine", "cpus", "gpus", "output_dir", "verbose", "json"}
# Those of `train` that differ from row to row, and with them those that make no sense for a single task.
_OF_ROWS = ("task", "data")
_REFUSED = (*_OF_ROWS, "tasks", "task_agnostic", "forward_transfer")


def _define() -> None:
    define_flags()
    for names in HEADINGS.values():
        names[:] = [name for name in names if name not in _REFUSED]
    for name in _REFUSED:
        FLAGS[name].help = "Refused: a row of the table learns one task."
    engine = (
        "Where trainings run: in processes on this machine, or on the machines of the Ray cluster that runs here, or "
        "that the environment variable RAY_ADDRESS names. They have to share --output_dir and the data."
    )
    define(flags.DEFINE_enum, "engine", ENGINES[0], engine, ESSENTIALS, enum_values=ENGINES)
    jobs = (
        "How many trainings run at once. With processes 1 by default, and each computes with its share of the cores; "
        "with Ray as many as there is room for."
    )
    define(flags.DEFINE_integer, "jobs", None, jobs, ESSENTIALS, lower_bound=1)
    cpus = "With Ray, how many cores a training gets; 1 by default."
    define(flags.DEFINE_integer, "cpus", None, cpus, ESSENTIALS, lower_bound=1)
    gpus = "With Ray, how many GPUs a training gets, or which part of one; by default 1 if the cluster has any, else 0."
    define(flags.DEFINE_float, "gpus", None, gpus, ESSENTIALS, lower_bound=0)
    attempts = "How often to try a row if its process dies, for example for lack of memory."
    define(flags.DEFINE_integer, "attempts", 3, attempts, ESSENTIALS, lower_bound=1)
    row = "Learn only this row, counted from 0: $SLURM_ARRAY_TASK_ID or $JOB_COMPLETION_INDEX of a cluster."
    define(flags.DEFINE_integer, "row", None, row, ESSENTIALS, lower_bound=0)


def _run(arguments: list[str]) -> Answer:
    columns = {name for names in HEADINGS.values() for name in names} - _OF_FARMS | {*_OF_ROWS}
    _check_engine()
    for name in _REFUSED:
        if FLAGS[name].present:
            raise flags.IllegalFlagValueError(f"--{name} is for one training; a row of the table learns one task.")
    rows = read_rows(local_path(arguments[0], "TABLE "), columns)
    if FLAGS.row is not None:
        if FLAGS.row >= len(rows):
            raise flags.IllegalFlagValueError(
                f"--row={FLAGS.row}: the table has {counted(len(rows), 'row')}, the last of which is {len(rows) - 1}."
            )
        rows = [rows[FLAGS.row]]
    common = [line for name in sorted(columns) if FLAGS[name].present for line in FLAGS[name].serialize().splitlines()]
    folder = make_folder(local_path(FLAGS.output_dir, "--output_dir="))
    # Rows of a cluster's array run at the same time, each by a command of its own.
    with contextlib.nullcontext() if FLAGS.row is not None else _kept(folder):
        states = _learn(rows, Farm(folder, common, FLAGS.attempts), _Told(folder, len(rows)))
        packs = _gather_packs(folder, rows)
    learned = [_result(folder, row, states[row.task]) for row in rows]
    value = {"folder": str(folder), "packs": str(packs) if packs else None, "rows": [value for value, _ in learned]}
    header = ["task", "status", "error %", "zeros %", "pack", "time", "attempts"]
    lines = [format_table(header, [cells for _, cells in learned], left=2)]
    lines += [f"{row.task}: {states[row.task].error}" for row in rows if states[row.task].error]
    if packs:
        lines.append(f"Packs: {packs}")
    return Answer(value, "\n".join(lines), DONE if all(s.status == LEARNED for s in states.values()) else WRONG)


def _check_engine() -> None:
    """Refuses flags of one way to run trainings that are given with another one."""
    if FLAGS.engine == "ray":
        if FLAGS.row is not None:
            raise flags.IllegalFlagValueError("--row is for arrays of other clusters; Ray starts all rows itself.")
        need("ray")
        return
    for name in ("cpus", "gpus"):
        if FLAGS[name].present:
            raise flags.IllegalFlagValueError(f"--{name} is for --engine=ray. Processes share the cores by --jobs.")


def _learn(rows: Sequence[TaskRow], farm: Farm, told: "_Told") -> dict[str, RowState]:
    """Learns the rows where `--engine` says."""
    if FLAGS.engine == "ray":
        share = Share(FLAGS.cpus or 1, FLAGS.gpus)
        return learn_on_ray(rows, farm, FLAGS.jobs, share, told, lambda text: print(text, flush=True))
    jobs = FLAGS.jobs or 1
    return learn_rows(rows, dataclasses.replace(farm, threads=share_of_cores(jobs)), jobs, told)


@contextlib.contextmanager
def _kept(folder: Path):
    """Keeps the folder for this process."""
    try:
        with folder_lock(folder):
            yield
    except RuntimeError as error:
        raise FarmError(str(error)) from None


class _Told:
    """Prints a line for each row that is done or given up, with the time left."""

    def __init__(self, folder: Path, rows: int):
        self.folder, self.rows, self._done, self._learned, self._began = folder, rows, 0, 0, time.monotonic()

    def __call__(self, row: TaskRow, state: RowState) -> None:
        self._done += 1
        if state.status == LEARNED:
            _, cells = _result(self.folder, row, state)
            text = f"{cells[2]} % error, {cells[4]}, {cells[5]}"
        else:
            text = f"{state.status}: {state.error}"
        left, passed = self.rows - self._done, time.monotonic() - self._began
        rest = f" (about {duration(passed / self._done * left)} left)" if left else ""
        print(f"{self._done} of {self.rows}{rest}, {row.task}: {text}", flush=True)


def _result(folder: Path, row: TaskRow, state: RowState) -> tuple[dict[str, Any], list[str]]:
    """Returns what is known of a row, as JSON values and as cells of the table."""
    value: dict[str, Any] = {"task": row.task, "line": row.line, "status": state.status, "attempts": state.attempts}
    value |= {"seconds": state.seconds, "error": state.error or None, "machine": state.machine or None}
    cells = [row.task, state.status, "-", "-", "-", duration(state.seconds), str(state.attempts)]
    if state.status == LEARNED:
        run = folder_of_row(folder, row.task).run
        metrics = read_metrics(run / METRICS_FILE)
        step = list(metrics["methods"].values())[-1]["steps"][-1]
        measured = step["errors"].get(row.task) or step["validation"].get(row.task)
        zeros, size = step.get("zeros_total"), step["bytes"].get("compressed")
        value |= {"measured": measured, "zeros": zeros, "bytes": size, "run": str(run)}
        cells[2:5] = [format_error(measured), "-" if zeros is None else f"{100 * zeros:.2f}", format_bytes(size)]
    return value, cells


def _gather_packs(folder: Path, rows: Sequence[TaskRow]) -> Path | None:
    """Puts the packs of all rows into one folder, as `--packs` takes it; returns the folder, None without packs."""
    target = folder / FARM_PACKS
    for row in rows:
        pack = folder_of_row(folder, row.task).run / pack_name(row.task)
        if pack.exists():
            make_folder(target)
            with atomic_file(target / pack.name) as temporary:
                shutil.copyfile(pack, temporary)
    return target if target.exists() else None


PROGRAM = Program(
    _TEXT,
    _define,
    _run,
    required=("output_dir",),
    arguments=("TABLE",),
    errors=(FarmError, ResultsError),
    interrupted="stopped. The same command goes on with the rows that are not done.",
)
