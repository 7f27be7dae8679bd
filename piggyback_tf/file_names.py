"""Names of all files and folders that a run writes, and of task packs wherever they lie.

A run of one task has its files in its own folder. In turn, each task has a folder there, `1_NAME`. A baseline has its
files in `baselines/METHOD`, and in turn its tasks have theirs in `baselines/METHOD/1_NAME`.
Nothing else in the package knows one of these names.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

# ------------------------------------------------------------------ what a run finds out before it trains
SETTINGS_FILE = "settings.json"
# By which base and data the run began.
FOUND_FILE = "found.json"
# From which pack its masks start.
START_FILE = "start.json"
# How much each class weighs in its loss.
WEIGHTS_FILE = "class_weights.json"
# All that is wrong with its images, where that is too much for a message.
PROBLEMS_FILE = "problems.txt"
BEFORE_TRAINING = (SETTINGS_FILE, FOUND_FILE, START_FILE, WEIGHTS_FILE, PROBLEMS_FILE)

# ------------------------------------------------------------------ what it keeps of a task
# The state of a training that is not done.
STATE_FILE = "training_state.safetensors"
# What a training was found to be worth; a training that has one is not done again.
RESULT_FILE = "result.json"
# `TASK.task.safetensors` is the pack of a task.
PACK_SUFFIX = ".task.safetensors"
# `TASK.answers1.json.gz` has its answers to each image of the split that it is judged by; the number is that of the
# format. As long as the suffix of a pack, so that a name that fits one fits the other.
ANSWERS_SUFFIX = ".answers1.json.gz"
# Of a method without packs: all that it keeps, or the network of a task by itself, `TASK.keras`, as Keras' save writes
# any network; a base of somebody's own is one, too.
MEMORY_FILE = "memory.safetensors"
NETWORK_SUFFIX = ".keras"
TENSORBOARD_FOLDER = "tensorboard"

# ------------------------------------------------------------------ what it tells in the end
METRICS_FILE = "metrics.json"
REPORT_FILE = "report.md"
ZEROS_PLOT = "zeros.png"
CURVES_PLOT = "learning_curves.png"
MATRIX_PLOT = "errors.png"

# ------------------------------------------------------------------ folders in its folder
_BASELINES_FOLDER = "baselines"
# Of tasks that are learned once more as if each were the first.
ALONE_FOLDER = "alone"
# Patterns of the folders to which a run writes: of each baseline, and, in its own and in theirs, of tasks in turn and
# of those that are learned alone.
_TASK_FOLDERS = ("[0-9]*_*", f"{ALONE_FOLDER}/[0-9]*_*")
_BASELINE = f"{_BASELINES_FOLDER}/*"
OWN_FOLDERS = (_BASELINE, *(f"{_BASELINE}/{tasks}" for tasks in _TASK_FOLDERS), *_TASK_FOLDERS)


def folder_of_method(folder: Path, method: str, *, baseline: bool) -> Path:
    """Returns where the files of one of a run's methods are: the run's folder, or, of a baseline, one in it."""
    return folder / _BASELINES_FOLDER / method if baseline else folder


def folders_of_methods(folder: Path, names: Sequence[str]) -> dict[str, Path]:
    """Returns the folder of each method of a run; the last is the main one.

    Its files lie in the run's folder itself, and those of the baselines beside them.
    """
    return {name: folder_of_method(folder, name, baseline=name != names[-1]) for name in names}


def folders_of(folder: Path, tasks: Iterable[str], *, in_turn: bool = True) -> dict[str, Path]:
    """Returns the folder of each task of a sequence, by task.

    Args:
        folder: The folder of the sequence.
        tasks: The tasks in the order of learning.
        in_turn: Whether each has a folder of its own; the files of one task by itself are in the folder itself.
    """
    return {task: folder / f"{place}_{task}" if in_turn else folder for place, task in enumerate(tasks, start=1)}


def pack_name(task: str) -> str:
    """Returns the name of the file of a task's pack."""
    return f"{task}{PACK_SUFFIX}"


def answers_name(task: str) -> str:
    """Returns the name of the file of a task's answers."""
    return f"{task}{ANSWERS_SUFFIX}"


def network_name(task: str) -> str:
    """Returns the name of the file of a task's network."""
    return f"{task}{NETWORK_SUFFIX}"


# ------------------------------------------------------------------ what a farm writes
# The packs of all its tasks, and the folder of each: its run, how that went, and what it printed.
FARM_PACKS, FARM_TASKS = "packs", "tasks"
FARM_RUN, FARM_STATE, FARM_LOG = "run", "state.json", "log.txt"
# How the name begins of an empty file by which a machine knows the folder of the farm that it works for.
FARM_MARK = ".farm-"

# ------------------------------------------------------------------ what `predict --results` writes
# To what the answers are that are in the folder.
ANSWERS_PLAN = "plan.json"


def answers_part_name(number: int, total: int) -> str:
    """Returns the name of a file of answers, of so many that are counted from 0."""
    return f"answers-{number:05d}-of-{total:05d}.jsonl"
