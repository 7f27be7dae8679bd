"""What a page shows: learned tasks, and what is known of each, from folders of runs and from packs."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.answers import ANSWERS, Answers, AnswersError, read_answers
from piggyback_tf.evaluation.results import ResultsError, learned_steps, read_json, read_metrics, read_result
from piggyback_tf.evaluation.tables.runs import Record, RunBase, TableError, read_runs
from piggyback_tf.file_names import (
    METRICS_FILE,
    PACK_SUFFIX,
    RESULT_FILE,
    SETTINGS_FILE,
    STATE_FILE,
    answers_name,
    folder_of_method,
    folders_of,
    pack_name,
)
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.packs.find import packs_in
from piggyback_tf.training.completed_epochs import completed_epochs, history_in_percent
from piggyback_tf.training.errors import TrainingError


class PageError(ValueError):
    """Something that cannot be shown; the message says what and why."""


@dataclasses.dataclass
class Subject:
    """A task as one method learned it.

    Attributes:
        source: The run or file that it is from, as given.
        task: The task's name.
        method: The method.
        base: The frozen network.
        label: What the page calls it; no two are equal.
        class_names: Its classes.
        errors: By split, what was measured last.
        step: What its run says of the training; see `results`.
        zeros: The dropped fraction of each masked weight by path; None if it has no masks or they are not known.
        zeros_total: Of all of them.
        pack: Its pack.
        size: Bytes that the task adds to the base, as stored.
        settings: Settings of the training.
        created: When it was learned.
        data: The spec of its data; empty if not known.
        answers: Its answers to single images.
        missing: Sentences on what is not known, and how to come by it.
    """

    source: str
    task: str
    method: str
    base: RunBase
    label: str = ""
    class_names: Sequence[str] = ()
    errors: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    step: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    zeros: Mapping[str, float] | None = None
    zeros_total: float | None = None
    pack: TaskPack | None = None
    size: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    created: str = ""
    data: str = ""
    answers: Answers | None = None
    missing: list[str] = dataclasses.field(default_factory=list)

    @property
    def place(self) -> str:
        """What the run or file is called, without the folders above it."""
        return self.source.rstrip("/").rpartition("/")[2].removesuffix(PACK_SUFFIX)

    @property
    def history(self) -> Mapping[str, Sequence[float]]:
        """Values by epoch; empty if they are not known."""
        found = self.step.get("history") or {}
        return {name: [value if _is_number(value) else math.nan for value in values] for name, values in found.items()}


@dataclasses.dataclass
class Subjects:
    """All that a page shows.

    Attributes:
        tasks: The learned tasks.
        sequences: Those of several tasks in turn, by the run they are from and its method; see `results`.
        left_out: By run, what `left_out_lines` takes: files by split and task.
        notes: Sentences on what is shown.
        problems: Sentences on what was asked for and cannot be shown.
    """

    tasks: list[Subject] = dataclasses.field(default_factory=list)
    sequences: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    left_out: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    problems: list[str] = dataclasses.field(default_factory=list)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (folder / SETTINGS_FILE).is_file()


def read_subjects(sources: Sequence[str], load: Callable[[str], tuple[TaskPack, int]]) -> Subjects:
    """Returns what is known of some runs and packs.

    Args:
        sources: Folders of runs, folders with packs in them, and files or URLs of packs.
        load: Returns a pack and the bytes of its file.

    Returns:
        What can be shown; what cannot is in `problems`.
    """
    found, seen = Subjects(), set()
    for source in sources:
        folder = Path(source)
        try:
            if folder.is_dir() and is_run(folder):
                parts = [(folder, source)]
            elif folder.is_dir():
                parts = [(path, str(path)) for path in packs_in(folder)]
                if not parts:
                    raise PageError(
                        f"{source!r} is no folder of a run of train: there is no {SETTINGS_FILE} in it, and no pack."
                    )
            else:
                parts = [(folder, source)]
        except PageError as error:
            found.problems.append(str(error))
            continue
        for path, name in parts:
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            _read(found, path, name, load)
    _name(found.tasks)
    return found


def _read(found: Subjects, path: Path, name: str, load: Callable[[str], tuple[TaskPack, int]]) -> None:
    """Adds a run, or a pack."""
    try:
        if not path.is_dir():
            found.tasks.append(_of_pack(name, *load(name)))
        elif (path / METRICS_FILE).is_file():
            _add_run(found, path, name)
        else:
            _add_unfinished(found, path, name)
    except (PackError, PageError, TableError, ResultsError) as error:
        found.problems.append(str(error))
    except OSError as error:
        found.problems.append(f"{name!r}: {error.strerror}." if error.strerror else str(error))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        found.problems.append(f"{name!r} does not hold what a run writes: {error!r}.")


def _of_pack(source: str, pack: TaskPack, size: int) -> Subject:
    base = RunBase(pack.base_hash, pack.base_name, pack.base_weights, pack.image_size)
    subject = Subject(source, pack.task, pack.method, base)
    _take_pack(subject, pack, size)
    subject.errors, subject.settings = pack.errors, pack.settings
    subject.missing.append("Learning curves are not in a pack. Name the folder of its run to see them.")
    _take_answers(subject, Path(source).parent)
    if _lacks_answers(subject):
        subject.missing.append(
            "There are no answers to single images beside the pack. Its run recorded them, if it was of this version; "
            "or measure it on images: piggyback evaluate PACK --data=SPEC --answers."
        )
    return subject


def _lacks_answers(subject: Subject) -> bool:
    """Whether there are no answers of a task and nothing was said of them; of a kind without any that is said."""
    if subject.answers is not None or any("answers" in sentence for sentence in subject.missing):
        return False
    if subject.pack is not None and subject.pack.problem not in ANSWERS:
        subject.missing.append(
            f"Of tasks like this one, which find a {subject.pack.problem!r}, no answers to single images are recorded "
            "in this version."
        )
        return False
    return True


def _add_run(found: Subjects, folder: Path, source: str) -> None:
    """Adds the tasks of a run that is finished."""
    metrics = read_metrics(folder / METRICS_FILE)
    for record in read_runs([str(folder)]):
        sequence = record.sequence or {}
        if len(record.tasks) > 1:
            found.sequences[f"{source}, {record.method}"] = sequence
        steps, last = dict(learned_steps(sequence)), sequence["steps"][-1]
        for task in record.tasks:
            # A task that is learned with later ones has the step of the last.
            subject = _of_step(source, task, record, steps.get(task, last))
            if task in last["errors"]:
                subject.errors = {**subject.errors, "test": last["errors"][task]}
            subject.data = metrics.get("data", {}).get(task, "")
            _complete(subject, record.folders[task])
            found.tasks.append(subject)
    if any(files for task in metrics.get("left_out", {}).values() for files in task.values()):
        found.left_out[source] = metrics["left_out"]


def _add_unfinished(found: Subjects, folder: Path, source: str) -> None:
    """Adds what is there of a run that was stopped, or is not done yet."""
    settings = read_json(folder / SETTINGS_FILE)
    if not isinstance(settings, dict) or "method" not in settings:
        raise PageError(f"{source!r} is no folder of a run of train: its {SETTINGS_FILE} is of something else.")
    in_turn = bool(settings.get("tasks"))
    base = RunBase(
        "", str(settings.get("backbone", "")), str(settings.get("weights") or ""), settings.get("image_size")
    )
    before = len(found.tasks)
    for method in (*settings.get("baseline", ()), settings["method"]):
        own = folder_of_method(folder, method, baseline=method != settings["method"])
        for task, place in _folders(settings, own, in_turn).items():
            record = Record(source, method, settings.get("seed"), base, (task,), None, settings=settings)
            try:
                if (place / RESULT_FILE).is_file():
                    subject = _of_step(source, task, record, read_result(place / RESULT_FILE, task))
                elif (place / STATE_FILE).is_file():
                    done = completed_epochs(place / STATE_FILE)
                    subject = _of_step(source, task, record, {"history": history_in_percent(done.history)})
                    subject.missing.append(
                        f"Its training is not done: {done.epochs_done} of {settings.get('epochs', '?')} epochs. "
                        "Nothing is measured yet. The command of the run, given again, goes on, or says why it stopped."
                    )
                else:
                    continue
            except TrainingError as error:
                raise PageError(str(error)) from error
            _complete(subject, place, learned=(place / RESULT_FILE).is_file())
            found.tasks.append(subject)
    if len(found.tasks) == before:
        raise PageError(
            f"The run in {source!r} has not trained for a whole epoch: there is nothing to show. Its command, given "
            "again, goes on."
        )
    found.notes.append(
        f"The run in {source!r} is not finished: there is no {METRICS_FILE} in it. What is there of it is shown."
    )


def _folders(settings: Mapping[str, Any], folder: Path, in_turn: bool) -> dict[str, Path]:
    """Returns the folder of each task of a run that is not finished."""
    if in_turn:
        return folders_of(folder, [str(task).partition("=")[0] for task in settings["tasks"]])
    task = settings.get("task")
    if not task and (folder / RESULT_FILE).is_file():
        task = str(read_json(folder / RESULT_FILE).get("file", "")).partition(".")[0]
    return {task or str(settings.get("data") or "task").rstrip("/").rpartition("/")[2]: folder}


def _of_step(source: str, task: str, record: Record, step: Mapping[str, Any]) -> Subject:
    """Returns a task with what a step says of it."""
    subject = Subject(source, task, record.method, record.base, step=step, settings=record.settings)
    subject.class_names = record.classes.get(task, ())
    subject.errors = {
        split: measured[task]
        for split, measured in (("test", step.get("errors", {})), ("validation", step.get("validation", {})))
        if task in measured
    }
    subject.zeros, subject.zeros_total = step.get("zeros"), step.get("zeros_total")
    if len(record.tasks) == 1:
        subject.size = (step.get("bytes") or {}).get("compressed")
    return subject


def _complete(subject: Subject, folder: Path, *, learned: bool = True) -> None:
    """Adds to a task of a run what is in its folder: its pack and its answers."""
    path = folder / pack_name(subject.task)
    if path.is_file():
        try:
            _take_pack(subject, TaskPack.load(path), path.stat().st_size)
        except (PackError, OSError) as error:
            subject.missing.append(f"Its pack cannot be read: {error}")
    if not subject.history:
        subject.missing.append("Its run recorded no learning curves.")
    _take_answers(subject, folder)
    if learned and _lacks_answers(subject):
        again = "piggyback evaluate PACK --data=SPEC --answers, or " if subject.pack else ""
        subject.missing.append(
            "Its run recorded no answers to single images, as runs did before this version. To see the images that it "
            f"gets wrong: {again}a new run in another folder."
        )


def _take_pack(subject: Subject, pack: TaskPack, size: int) -> None:
    subject.pack, subject.class_names, subject.size, subject.created = pack, pack.class_names, size, pack.created
    subject.base = RunBase(pack.base_hash, pack.base_name, pack.base_weights, pack.image_size)
    if pack.masks:
        subject.zeros, subject.zeros_total = pack.zeros, pack.zeros_total


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _take_answers(subject: Subject, folder: Path) -> None:
    """Adds the recorded answers, if they are those of this task."""
    path = folder / answers_name(subject.task)
    if not path.is_file():
        return
    try:
        answers = read_answers(path)
    except (AnswersError, OSError) as error:
        subject.missing.append(f"Its answers to single images cannot be read: {error}.")
        return
    if list(answers.class_names) != list(subject.class_names or answers.class_names):
        subject.missing.append(
            f"The answers in {str(path)!r} are for other classes than the task's; they are not shown."
        )
        return
    subject.answers, subject.class_names = answers, answers.class_names


def _name(tasks: list[Subject]) -> None:
    """Gives each task a name of its own, as short as that can be."""
    forms: list[Callable[[Subject], str]] = [
        lambda one: one.task,
        lambda one: f"{one.task}, {one.method}",
        lambda one: f"{one.task} ({one.place})",
        lambda one: f"{one.task}, {one.method} ({one.place})",
        lambda one: f"{one.task}, {one.method} ({one.source})",
    ]
    for form in forms:
        counts = Counter(form(task) for task in tasks)
        for task in tasks:
            task.label = task.label or (form(task) if counts[form(task)] == 1 else "")
    for place, task in enumerate(tasks, start=1):
        task.label = task.label or f"{forms[-1](task)} #{place}"
