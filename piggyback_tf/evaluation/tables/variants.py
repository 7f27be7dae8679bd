"""Which runs belong together: the same base, method and settings with several seeds, measured on the same images."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.evaluation.tables.runs import Record, TableError
from piggyback_tf.foreign_text import short_hash

# They say what was learned on what, and what was measured, not how it was learned.
_NOT_HOW = {
    *("data", "task", "tasks", "baseline", "method", "seed"),
    *("backbone", "weights", "image_size"),
    *("task_agnostic", "forward_transfer"),
}


def all_tasks(records: Iterable[Record]) -> list[str]:
    """Returns every task once, in the order in which the runs have them."""
    return list(dict.fromkeys(task for record in records for task in record.tasks))


def check_tests(records: Sequence[Record]) -> None:
    """Raises a `TableError` if a task was not measured on the same images and classes in every run."""
    first: dict[str, Record] = {}
    for record in records:
        for task, errors in record.errors.items():
            other = first.setdefault(task, record)
            images = other.errors[task]["images"]
            if errors["images"] != images:
                raise TableError(
                    f"Task {task!r} was measured on {images:,} images in {other.source!r} and on "
                    f"{errors['images']:,} in {record.source!r}; a table compares runs on the same test set."
                )
            classes = (other.classes.get(task), record.classes.get(task))
            if None not in classes and classes[0] != classes[1]:
                raise TableError(
                    f"Task {task!r} has other classes in {other.source!r} than in {record.source!r}; a table compares "
                    "runs on the same test set."
                )


def drop_repeated_baselines(records: Sequence[Record]) -> list[Record]:
    """Returns the runs without baselines that were trained again beside another method, with the same errors."""
    kept: dict[tuple, list[Record]] = {}
    for record in records:
        same = kept.setdefault((record.method, record.base.key, record.seed, record.tasks), [])
        if not any(record.errors == other.errors and (record.baseline or other.baseline) for other in same):
            same.append(record)
    chosen = {record for same in kept.values() for record in same}
    return [record for record in records if record in chosen]


def one_base(records: Sequence[Record], what: str, instead: str) -> None:
    """Raises a `TableError` if runs are on different bases.

    Args:
        records: The runs.
        what: Begins the sentence, such as `"Layout survey compares methods on one base"`.
        instead: What else can be done.
    """
    for record in records[1:]:
        if record.base.key != records[0].base.key:
            raise TableError(
                f"{what}; {records[0].source!r} is on {_describe(records[0])} and {record.source!r} on "
                f"{_describe(record)}. {instead}"
            )


def name_bases(records: Sequence[Record], weights: bool = False) -> dict[tuple, str]:
    """Returns a name for each base by its key: that of the network, and as much besides as tells them apart.

    Args:
        records: The runs.
        weights: Whether the weights are always named.

    Raises:
        TableError: If bases of the same network, weights and image size are not the same.
    """
    first: dict[tuple, Record] = {}
    for record in records:
        first.setdefault(record.base.key, record)

    def network(record: Record) -> str:
        # A network of one's own is given by its file.
        return Path(record.base.backbone).name or f"base {short_hash(record.base.hash)}"

    def with_weights(record: Record) -> str:
        return f"{network(record)}, {Path(record.base.weights).name or 'unknown weights'}"

    names: dict[tuple, str] = {}
    for key, record in first.items():
        others = [other for other in first.values() if other is not record]
        name = network(record)
        if weights or any(network(other) == name for other in others):
            name = with_weights(record)
        same = [other for other in others if with_weights(other) == with_weights(record)]
        if same and any(other.base.image_size == record.base.image_size for other in same):
            raise TableError(
                f"{record.source!r} and {same[0].source!r} name the same base, {with_weights(record)}, and have "
                f"different ones: {short_hash(record.base.hash)} and {short_hash(same[0].base.hash)}."
            )
        names[key] = f"{name}, {record.base.image_size} px" if same else name
    return names


def name_variants(
    records: Sequence[Record], titles: Mapping[str, str] | None = None, ignore: Iterable[str] = ()
) -> dict[Record, str]:
    """Returns a name for the method and settings of each run.

    Two runs of a method have the same name if their settings are the same, the seed apart. A setting is named if it
    differs between runs of a method that learned the same task on the same base: that tasks or networks are learned
    with different ones is part of a recipe.

    Args:
        records: The runs.
        titles: Names of methods where they are called something else.
        ignore: Settings that are not looked at.
    """
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        for task in record.tasks:
            groups.setdefault((record.method, record.base.key, task), []).append(record)
    left_out = _NOT_HOW | set(ignore)
    differing: dict[str, list[str]] = {}
    for (method, *_), group in groups.items():
        known = [record for record in group if record.settings]
        found = set().union(*(_differing(known[0].all_settings, record.all_settings) for record in known))
        differing.setdefault(method, []).extend(sorted(found - left_out))
    names = {}
    for record in records:
        title = (titles or {}).get(record.method, record.method)
        if record.name:
            names[record] = title if record.name == record.method else record.name
            continue
        settings = [f"{name}={_shown(record, name)}" for name in dict.fromkeys(differing.get(record.method, []))]
        names[record] = title + (f" ({', '.join(settings)})" if settings else "")
    return names


def by_seed(records: Sequence[Record], task: str) -> list[Record]:
    """Returns the run of each seed that learned a task.

    Args:
        records: Runs of one method with the same settings on the same base.
        task: Name of the task.

    Raises:
        TableError: If two runs have the same seed. Two sequences in different orders whose errors on the task are equal
            count as one: the method does not depend on the order.
    """
    found: dict[int | None, Record] = {}
    for record in records:
        if task not in record.tasks:
            continue
        other = found.setdefault(record.seed, record)
        same = other.errors.get(task) == record.errors.get(task)
        if other is record or (same and sorted(other.tasks) == sorted(record.tasks) and other.tasks != record.tasks):
            continue
        raise TableError(
            f"{other.source!r} and {record.source!r} both hold method {record.method} on task {task!r} with the same "
            f"settings and seed {record.seed}; use one of them."
        )
    return list(found.values())


def order_sign(order: Sequence[str], tasks: Sequence[str]) -> str:
    """Returns `↓` for tasks learned in the table's order, `↑` for the reverse, and otherwise the order itself."""
    present = [task for task in tasks if task in order]
    if len(order) > 1 and len(present) == len(tasks):
        if list(order) == present:
            return "↓"
        if list(order) == present[::-1]:
            return "↑"
    return " → ".join(order)


def _describe(record: Record) -> str:
    base = record.base
    known = f"{Path(base.backbone).name}, {Path(base.weights).name}, " if base.backbone else ""
    return known + (f"{base.image_size} px, " if base.image_size else "") + f"hash {short_hash(base.hash)}"


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """Returns the names of settings that two runs do not both have, with the same value."""
    both = one.keys() & other.keys()
    return one.keys() ^ other.keys() | {name for name in both if one[name] != other[name]}


def _shown(record: Record, name: str) -> str:
    value = record.all_settings.get(name, "not known")
    return value if isinstance(value, str) else json.dumps(value)
