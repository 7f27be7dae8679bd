"""What tables are made of: the results of finished runs, read from where they were written."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.results import (
    ResultsError,
    learned_steps,
    read_json,
    read_metrics,
    read_sequence,
)
from piggyback_tf.evaluation.text import main_error
from piggyback_tf.file_names import FOUND_FILE, METRICS_FILE, SETTINGS_FILE, folder_of_method, folders_of, pack_name
from piggyback_tf.packs import TaskPack
from piggyback_tf.settings import complete
from piggyback_tf.settings.records import own_record


class TableError(ValueError):
    """Runs that cannot be read or do not fit together; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class RunBase:
    """The frozen network of a run.

    Attributes:
        hash: SHA-256 of its weights.
        backbone: Name of the network; empty if not known.
        weights: Name of its weights, or their file.
        image_size: Height and width of its images; None if not known.
    """

    hash: str
    backbone: str = ""
    weights: str = ""
    image_size: int | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Two runs are on the same base if these are equal. Random weights are drawn anew with each seed."""
        same = (self.backbone, "random") if self.backbone and self.weights == "random" else (self.hash,)
        return (*same, self.image_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """What one method learned in one run: a task, or several in turn.

    Attributes:
        source: Where it was read, for messages.
        method: Name of the method.
        seed: Of the run; None if not known.
        base: What it was learned on.
        tasks: In the order of learning.
        sequence: What `run_sequence` returned; None if the method refused.
        in_turn: Whether the run was one of tasks in turn, and not of a task by itself.
        settings: What is recorded of its settings; empty if not known.
        classes: Names of the classes, by task, where known.
        packs: File of each task's pack, where there is one.
        folders: Folder of each task, by task, of a run of `train.py`.
        name: A name for the method with its settings, for a run whose settings are not known.
        baseline: Whether it was trained as a `--baseline` of another method.
        refused: Why the method cannot learn on this base; empty if it did.
    """

    source: str
    method: str
    seed: int | None
    base: RunBase
    tasks: tuple[str, ...]
    sequence: Mapping[str, Any] | None
    in_turn: bool = True
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)
    packs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    name: str = ""
    baseline: bool = False
    refused: str = ""

    @property
    def errors(self) -> Mapping[str, Mapping[str, Any]]:
        """Errors as from `evaluate` on the test split, by task, after all tasks were learned."""
        return self.sequence["steps"][-1]["errors"] if self.sequence else {}

    @property
    def seconds(self) -> float | None:
        """How long learning took."""
        return self.sequence["measures"]["seconds"] if self.sequence else None

    @functools.cached_property
    def all_settings(self) -> Mapping[str, Any]:
        """All its settings, also those that the record leaves out; empty if not known."""
        return complete(self.settings, self.method) if self.settings else {}

    def zeros(self, task: str) -> tuple[float, Mapping[str, float]] | None:
        """Returns the dropped fraction of a task's masked weights, in all and by layer; None if there is no mask.

        Raises:
            PackError: If the task's pack is damaged.
        """
        step = dict(learned_steps(self.sequence)).get(task, {}) if self.sequence else {}
        if "zeros" in step:
            return step["zeros_total"], step["zeros"]
        return _zeros(self.packs[task]) if task in self.packs else None

    @functools.cached_property
    def sizes(self) -> dict[str, int | None] | None:
        """Bytes of what has to be kept: `"base"`, `"system"`, all with plain packs, and `"compressed"`, all as stored.

        A base that the method replaces is in `"base"` only. `"system"` is None if a task's pack is gone; all is None if
        the run does not say.
        """
        size = self.sequence["steps"][-1].get("bytes") if self.sequence else None
        if not size:
            return None
        base, system, kept = size["base"], size["system"], size["base"]
        if system is not None:
            kept = system - size["added"]
        elif pack := self.packs.get(self.tasks[-1]):  # Its run measured the file alone.
            system = kept + _plain_bytes(pack)
        return {"base": base, "system": system, "compressed": kept + size["compressed"]}


def read_runs(paths: list[str]) -> list[Record]:
    """Returns what runs hold.

    Args:
        paths: Folders that `train.py` wrote, and JSON files of `benchmarks/methods.py`.

    Raises:
        TableError: If a path is there twice, is none of these, or a run is not finished.
        OSError: If a file cannot be read.
    """
    seen: dict[Path, str] = {}
    records = []
    for path in paths:
        place = Path(path).resolve()
        if place in seen:
            raise TableError(f"{path!r} is given twice.")
        seen[place] = path
        try:
            found = _read_folder(Path(path), path) if place.is_dir() else _read_file(Path(path), path)
            for record in found:
                _check(record)
            records += found
        except ResultsError as error:
            raise TableError(str(error)) from None
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            what = "what train.py or benchmarks/methods.py writes"
            raise TableError(f"{path!r} does not hold {what}: {error!r}.") from None
    return records


def read_benchmark(rows: Mapping[str, Mapping[str, Any]], source: str = "benchmark") -> list[Record]:
    """Returns the runs of `benchmarks/methods.py`.

    Args:
        rows: By `"LABEL/ORDER/SEED"` what `run_sequence` returned, or `"method"` and `"refused"`.
        source: Where they come from, for messages.

    Raises:
        TableError: If a key has another form, or no run was finished.
    """
    keys = {key: tuple(key.rsplit("/", 2)) for key in rows}
    for key, parts in keys.items():
        if len(parts) != 3 or not parts[2].isdigit():
            raise TableError(f"{source}: a key is LABEL/ORDER/SEED. Received: {key!r}.")
    orders = {keys[key][1]: tuple(row["tasks"]) for key, row in rows.items() if "tasks" in row}
    hashes = [row["base_hash"] for row in rows.values() if "base_hash" in row]
    if not hashes:
        raise TableError(f"{source}: there is no finished run.")
    records = []
    for key, row in rows.items():
        label, order, seed = keys[key]
        done = "refused" not in row
        if not done and order not in orders:
            continue  # With no other run in this order, nobody knows its tasks; another order has the same reason.
        records.append(
            Record(
                source=f"{source}: {key}",
                method=row["method"],
                seed=int(seed),
                base=RunBase(row["base_hash"] if done else hashes[0]),
                tasks=orders[order],
                sequence=read_sequence(row) if done else None,
                name=label,
                refused="" if done else row["refused"],
            )
        )
    return records


def _read_folder(folder: Path, source: str) -> list[Record]:
    if not (folder / SETTINGS_FILE).is_file():
        raise TableError(f"{source!r} is no folder of a run of train.py: there is no {SETTINGS_FILE} in it.")
    if not (folder / METRICS_FILE).is_file():
        raise TableError(
            f"The run in {source!r} is not finished: there is no {METRICS_FILE} in it. Its command, given again, goes "
            "on."
        )
    settings, metrics = read_json(folder / SETTINGS_FILE), read_metrics(folder / METRICS_FILE)
    found = read_json(folder / FOUND_FILE) if (folder / FOUND_FILE).is_file() else {}
    in_turn, records = bool(settings.get("tasks")), []
    for method, sequence in metrics["methods"].items():
        tasks, baseline = tuple(sequence["tasks"]), method != settings.get("method")
        folders = folders_of(folder_of_method(folder, method, baseline=baseline), tasks, in_turn=in_turn)
        files = {task: place / pack_name(task) for task, place in folders.items()}
        classes = {task: f"{task}: class_names" if in_turn else "class_names" for task in tasks}
        records.append(
            Record(
                source=source,
                method=method,
                seed=settings.get("seed"),
                base=_base(sequence["base_hash"], settings),
                tasks=tasks,
                sequence=sequence,
                in_turn=in_turn,
                settings=own_record(settings, method),
                classes={task: found[name] for task, name in classes.items() if name in found},
                packs={task: path for task, path in files.items() if path.is_file()},
                folders=folders,
                baseline=baseline,
            )
        )
    return records


def _check(record: Record) -> None:
    """Reads what tables are made of once, so that what is missing is missed here."""
    for errors in record.errors.values():
        float(errors[main_error(errors)]), int(errors["images"])
    if record.sequence and record.in_turn:
        last = record.sequence["steps"][-1]
        missing = [task for task in record.tasks if task not in record.errors]
        if missing or any(task not in last["multiply_adds"] for task in record.tasks):
            raise KeyError(*missing)
        float(record.sequence["measures"]["seconds"]), float(last["trained_parameters"])
        sum(last["bytes"][part] for part in ("base", "system", "added", "compressed"))


def _read_file(path: Path, source: str) -> list[Record]:
    if not path.is_file():
        raise TableError(f"There is no folder or file {source!r}.")
    content = read_json(path)
    if not isinstance(content, dict) or "rows" not in content:
        raise TableError(f"{source!r} is neither a folder of train.py nor a JSON file of benchmarks/methods.py.")
    return read_benchmark(content["rows"], source)


def _base(digest: str, settings: Mapping[str, Any]) -> RunBase:
    """Returns the base of a run; where a flag was not given, the backbone's default."""
    from piggyback_tf.backbones.registry import get_entry

    backbone = settings["backbone"]
    weights, image_size = settings.get("weights"), settings.get("image_size")
    if weights is None or image_size is None:
        try:
            entry = get_entry(backbone)
        except ValueError:  # A network that another program registered.
            return RunBase(digest, backbone, weights or "", image_size)
        weights, image_size = weights or entry.weights[0], image_size or entry.image_size
    return RunBase(digest, backbone, weights, image_size)


@functools.cache
def _zeros(path: Path) -> tuple[float, Mapping[str, float]] | None:
    pack = TaskPack.load(path)
    return (pack.zeros_total, pack.zeros) if pack.masks else None


@functools.cache
def _plain_bytes(path: Path) -> int:
    """Returns the size of a pack with a bit for each weight of a mask, as the paper counts."""
    return len(TaskPack.load(path).to_bytes("bits"))
