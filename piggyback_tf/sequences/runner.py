"""Learns tasks one after another, measures all of them after each, and goes on after a kill where it was."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import TaskData, make_dataset, stream_batches
from piggyback_tf.data.joined import join_tasks
from piggyback_tf.evaluation.continual import ErrorMatrix, read_matrix
from piggyback_tf.files import write_atomically
from piggyback_tf.methods import METHODS, Memory, MethodConfig
from piggyback_tf.sequences.answers import measure, measure_task_agnostic
from piggyback_tf.sequences.cost import multiply_adds
from piggyback_tf.sequences.start import provenance, with_start
from piggyback_tf.sequences.store import MEMORY_FILE, MemoryStore, PackStore, Store
from piggyback_tf.sequences.tasks import folders_of
from piggyback_tf.training import RESULT_FILE, InputConfig, TrainConfig, TrainingError, finish_training, train_task


@dataclasses.dataclass(frozen=True)
class SequenceSettings:
    """What a sequence is trained with.

    Attributes:
        method: Name of the method.
        config: The method's settings.
        train: Optimisers, schedule, length of each training.
        inputs: Augmentation and caching.
        settings: All settings by name, for the record.
        verbose: As for `train_task`.
        tensorboard: Whether to write files of TensorBoard into each task's folder.
        task_agnostic: Whether to measure, at the end, how well tasks are inferred where none is given.
        forward_transfer: Whether to train every task but the first also alone, which is what the forward transfer of a
            sequential method is measured from. For methods whose tasks do not know of one another it is 0 without.

    Raises:
        ValueError: If forward transfer is asked of a method that learns all tasks at once.
    """

    method: str
    config: MethodConfig
    train: TrainConfig
    inputs: InputConfig
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verbose: int = 0
    tensorboard: bool = False
    task_agnostic: bool = True
    forward_transfer: bool = False

    def __post_init__(self) -> None:
        if self.forward_transfer and METHODS[self.method].Config.at_once:
            raise ValueError(
                f"Method {self.method} learns all tasks at once, none after another: there is no forward transfer."
            )


def run_sequence(
    folder: Path, backbone: Backbone, tasks: Mapping[str, TaskData], settings: SequenceSettings
) -> dict[str, Any]:
    """Learns tasks in their order and measures all that are learned after each.

    Each task has a folder, `1_NAME`, with its result; a task that has one is not learned again, and a training that
    was interrupted goes on after its last epoch.

    Args:
        folder: An existing folder.
        backbone: The base.
        tasks: The data of each task, with a test split, in the order of learning.
        settings: How to learn.

    Returns:
        `"tasks"`, `"method"`, `"steps"` (for each task what was measured after it was learned: `"errors"` on the test
        split by task, `"answers"`: a digest of all logits by task, `"bytes"`, `"trained_parameters"`, `"seconds"`,
        `"multiply_adds"` by task) and `"measures"` of the sequence. Of two tasks or more also `"task_agnostic"`: see
        `measure_task_agnostic`. With `settings.forward_transfer`, of a sequential method, `"alone"`: what was measured
        of each task but the first after it was learned alone, by task, as in `"steps"`.

    Raises:
        ValueError: If a task has no test split or less than two classes, or a method cannot learn on this base, or not
            so many tasks.
        TrainingError: As `train_task`, and if the base was changed.
    """
    for task, data in tasks.items():
        if data.test is None:
            raise ValueError(f"Task {task!r} has no test split, on which a sequence measures all tasks.")
        if len(data.class_names) < 2:
            raise ValueError(f"Task {task!r} has the classes {list(data.class_names)}; a task needs at least 2.")
    method = METHODS[settings.method](settings.config)
    method.check_room(backbone, len(tasks))
    metrics = {"method": settings.method, "tasks": list(tasks), "base_hash": backbone.hash}
    metrics["sequential"] = method.sequential
    metrics["steps"] = steps = _learn_in_turn(folder, backbone, tasks, settings)
    if "task_agnostic" in steps[-1]:
        metrics["task_agnostic"] = steps[-1].pop("task_agnostic")
    if settings.forward_transfer and metrics["sequential"]:
        metrics["alone"] = _learn_alone(folder / "alone", backbone, tasks, settings)
    return metrics | {"measures": measures(metrics)}


def _learn_in_turn(
    folder: Path, backbone: Backbone, tasks: Mapping[str, TaskData], settings: SequenceSettings, first: int = 1
) -> list[dict[str, Any]]:
    """Learns tasks in their order; returns what was measured after each.

    Args:
        folder: An existing folder.
        backbone: The base.
        tasks: The data of each task.
        settings: How to learn.
        first: The number of the first task in the name of its folder.
    """
    kind, names = METHODS[settings.method], list(tasks)
    folders = folders_of(folder, tasks, first)
    store: Store = (PackStore if kind.makes_pack else MemoryStore)(backbone, folders)
    base_hash, steps = backbone.hash, []
    for place, task in enumerate(names, start=1):
        own = folders[task]
        own.mkdir(exist_ok=True)
        if kind.Config.at_once and task != names[-1]:
            steps.append({"errors": {}})
            continue
        if not (own / RESULT_FILE).exists():
            title = f"{settings.method}, task {place} of {len(names)}, {task}:"
            found = _learn(own, task, backbone, tasks, store, settings, title if len(names) > 1 else f"{task} alone:")
            if backbone.hash != base_hash:
                raise TrainingError(
                    f"Method {settings.method} changed the base, which must never happen. Please report this."
                )
            found |= _measure_all(names[:place], tasks, store, settings, backbone)
            _write_result(own, found)
        finish_training(own)
        store.forget(task)
        steps.append(json.loads((own / RESULT_FILE).read_text()))
    # By itself, so that it can be asked for when all is learned.
    if settings.task_agnostic and len(names) > 1 and "task_agnostic" not in steps[-1]:
        steps[-1]["task_agnostic"] = _measure_task_agnostic(tasks, store, settings, backbone)
        _write_result(folders[names[-1]], steps[-1])
    return steps


def _write_result(folder: Path, found: Mapping[str, Any]) -> None:
    write_atomically(folder / RESULT_FILE, json.dumps(found, indent=2) + "\n")


def _learn_alone(
    folder: Path, backbone: Backbone, tasks: Mapping[str, TaskData], settings: SequenceSettings
) -> dict[str, Any]:
    """Learns every task but the first as if it were the first; returns what was measured of each."""
    alone = {}
    for place, task in enumerate(tasks, start=1):
        if place > 1:
            folder.mkdir(exist_ok=True)
            (alone[task],) = _learn_in_turn(folder, backbone, {task: tasks[task]}, settings, first=place)
            # Nothing but its error is needed, and the network would take as much as those of the sequence.
            (folder / f"{place}_{task}" / MEMORY_FILE).unlink(missing_ok=True)
    return alone


def measures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns average error, forgetting, transfer of a sequence, and whether old answers stayed the same.

    Forward transfer is 0 for methods whose tasks know nothing of one another, since each is learned as if it were
    alone. For sequential methods it is None unless their tasks were trained alone, too, and always for methods that
    learn all tasks at once. The seconds are those of the sequence, without what was trained alone.

    Args:
        metrics: What `run_sequence` returns, without the measures.
    """
    matrix, steps = read_matrix(metrics), metrics["steps"]
    same: dict[str, set[str]] = {}
    for step in steps:
        for task, digest in step.get("answers", {}).items():
            same.setdefault(task, set()).add(digest)
    return {
        "average_error": matrix.average_error(),
        "forgetting": matrix.forgetting(),
        "backward_transfer": matrix.backward_transfer(),
        "forward_transfer": _forward_transfer(metrics, matrix),
        "old_answers_identical": all(len(digests) == 1 for digests in same.values()),
        "seconds": sum(step.get("seconds", 0.0) for step in steps),
    }


def _forward_transfer(metrics: Mapping[str, Any], matrix: ErrorMatrix) -> float | None:
    """Returns the forward transfer of a sequence, where it is known; see `measures`."""
    kind = METHODS[metrics["method"]]
    if kind.Config.at_once or len(matrix.tasks) < 2:
        return None
    if not metrics["sequential"]:
        return 0.0
    return matrix.forward_transfer(
        {task: found["errors"][task]["top1_error"] for task, found in metrics.get("alone", {}).items()}
    )


def _learn(
    folder: Path,
    task: str,
    backbone: Backbone,
    tasks: Mapping[str, TaskData],
    store: Store,
    settings: SequenceSettings,
    title: str,
) -> dict[str, Any]:
    """Trains a task and puts it into the store; `title` is what is printed of it."""
    kind = METHODS[settings.method]
    heads = {name: len(data.class_names) for name, data in tasks.items()} if kind.Config.at_once else None
    memory = (
        Memory() if kind.Config.at_once else store.memory(task)
    )  # The tasks before have no files of their own then.
    method = kind(settings.config, memory, heads)
    data = join_tasks(tasks) if kind.Config.at_once else tasks[task]
    inputs = settings.inputs.for_size(backbone.image_size)
    learned = store.earlier_packs(task)
    method = with_start(method, backbone, data, inputs, seed=settings.train.seed, folder=folder, learned=learned)
    trained = train_task(
        method,
        backbone,
        data,
        settings.train,
        inputs,
        state_dir=folder,
        tensorboard_dir=folder / "tensorboard" if settings.tensorboard else None,
        verbose=settings.verbose,
        title=title,
    )
    started = time.perf_counter()
    store.add(
        method,
        trained.model,
        task,
        stream_batches(
            data.train, inputs.augment_eval, batch_size=settings.train.batch_size, **inputs.existing_cache()
        ),
        {
            "method": settings.method,
            "class_names": list(data.class_names),
            "eval_augment": inputs.augment_eval,
            "settings": dict(settings.settings) | provenance(method),
        },
    )
    return {
        "best_epoch": trained.best_epoch + 1,
        "history": trained.history,
        "seconds": trained.seconds + time.perf_counter() - started,
        "trained_parameters": sum(int(np.prod(variable.shape)) for variable in trained.model.trainable_variables),
        **provenance(method),
    }


def _measure_all(
    learned: list[str],
    tasks: Mapping[str, TaskData],
    store: Store,
    settings: SequenceSettings,
    backbone: Backbone,
) -> dict[str, Any]:
    """Measures every learned task as the store has it, and what the whole takes."""
    kind = METHODS[settings.method]
    errors, answers, cost = {}, {}, {}
    for task in learned:
        network = store.network(kind(settings.config), task, learned[-1])
        errors[task], answers[task] = measure(network, _test_batches(tasks[task], settings, backbone))
        cost[task] = multiply_adds(network)
    sizes = store.sizes(learned[-1])
    base = 0 if kind.replaces_base else backbone.nbytes
    return {
        "errors": errors,
        "answers": answers,
        "multiply_adds": cost,
        "bytes": {"base": backbone.nbytes, "system": base + sizes["added"], **sizes},
    }


def _measure_task_agnostic(
    tasks: Mapping[str, TaskData], store: Store, settings: SequenceSettings, backbone: Backbone
) -> dict[str, Any]:
    """Measures all tasks as they are after the last, on images that do not say of which task they are."""
    method, last = METHODS[settings.method](settings.config), list(tasks)[-1]
    return measure_task_agnostic(
        lambda task: store.network(method, task, last),
        {task: _test_batches(data, settings, backbone) for task, data in tasks.items()},
        backbone,
        store.packs(),
        probabilities=store.probabilities,
    )


def _test_batches(data: TaskData, settings: SequenceSettings, backbone: Backbone) -> tf.data.Dataset:
    """Returns the test images of a task in their order, prepared for evaluation, and their labels."""
    inputs = settings.inputs.for_size(backbone.image_size)
    return make_dataset(
        data.test,
        inputs.augment_eval,
        batch_size=settings.train.batch_size,
        training=False,
        **inputs.cache_options(),
    )
