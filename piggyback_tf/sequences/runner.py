"""Learns tasks one after another, measures all of them after each, and goes on after a kill where it was."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Source, TaskData, make_dataset, surface_data_errors
from piggyback_tf.data.joined import join_tasks
from piggyback_tf.evaluation import evaluate
from piggyback_tf.evaluation.continual import read_matrix
from piggyback_tf.files import write_atomically
from piggyback_tf.methods import METHODS, Memory, MethodConfig
from piggyback_tf.sequences.cost import multiply_adds
from piggyback_tf.sequences.store import MemoryStore, PackStore, Store
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, finish_training, train_task

RESULT_FILE = "result.json"


@dataclasses.dataclass(frozen=True)
class SequenceSettings:
    """What a sequence is trained with.

    Attributes:
        method: Name of the method.
        config: The method's settings.
        train: Optimisers, schedule, length of each training.
        inputs: Augmentation and caching.
        settings: All settings by name, for the record.
        verbose: As for `keras.Model.fit`.
    """

    method: str
    config: MethodConfig
    train: TrainConfig
    inputs: InputConfig
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    verbose: int = 0


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
        `"multiply_adds"` by task) and `"measures"` of the sequence.

    Raises:
        ValueError: If a task has no test split, or a method cannot learn on this base.
        TrainingError: As `train_task`, and if the base was changed.
    """
    for task, data in tasks.items():
        if data.test is None:
            raise ValueError(f"Task {task!r} has no test split, on which a sequence measures all tasks.")
    kind = METHODS[settings.method]
    folders = {task: folder / f"{place}_{task}" for place, task in enumerate(tasks, start=1)}
    store: Store = (PackStore if kind.makes_pack else MemoryStore)(backbone, folders)
    base_hash = backbone.hash
    names = list(tasks)
    steps = []
    for place, task in enumerate(names):
        own = folders[task]
        own.mkdir(exist_ok=True)
        if kind.at_once and task != names[-1]:
            steps.append({"errors": {}})
            continue
        if not (own / RESULT_FILE).exists():
            logging.info("%s, task %d of %d: %s", settings.method, place + 1, len(names), task)
            found = _learn(own, task, backbone, tasks, store, settings)
            if backbone.hash != base_hash:
                raise TrainingError(
                    f"Method {settings.method} changed the base, which must never happen. Please report this."
                )
            learned = names[: place + 1]
            found |= _measure_all(learned, tasks, store, settings, backbone)
            write_atomically(own / RESULT_FILE, json.dumps(found, indent=2) + "\n")
        finish_training(own)
        store.forget(task)
        steps.append(json.loads((own / RESULT_FILE).read_text()))
    metrics = {"method": settings.method, "tasks": names, "base_hash": base_hash, "steps": steps}
    return metrics | {"measures": measures(metrics)}


def measures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns average error, forgetting and backward transfer of a sequence, and whether old answers stayed the same.

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
        "old_answers_identical": all(len(digests) == 1 for digests in same.values()),
        "seconds": sum(step.get("seconds", 0.0) for step in steps),
    }


def _learn(
    folder: Path,
    task: str,
    backbone: Backbone,
    tasks: Mapping[str, TaskData],
    store: Store,
    settings: SequenceSettings,
) -> dict[str, Any]:
    """Trains a task and puts it into the store."""
    kind = METHODS[settings.method]
    heads = {name: len(data.class_names) for name, data in tasks.items()} if kind.at_once else None
    memory = Memory() if kind.at_once else store.memory(task)  # The tasks before have no files of their own then.
    method = kind(settings.config, memory, heads)
    data = join_tasks(tasks) if kind.at_once else tasks[task]
    inputs = settings.inputs.for_size(backbone.image_size)
    trained = train_task(method, backbone, data, settings.train, inputs, state_dir=folder, verbose=settings.verbose)
    started = time.perf_counter()
    images = make_dataset(data.train, inputs.augment_eval, batch_size=settings.train.batch_size, training=False)
    with surface_data_errors():
        store.add(
            method,
            trained.model,
            task,
            images,
            {
                "method": settings.method,
                "class_names": list(data.class_names),
                "eval_augment": inputs.augment_eval,
                "settings": dict(settings.settings),
            },
        )
    return {
        "best_epoch": trained.best_epoch + 1,
        "history": trained.history,
        "seconds": trained.seconds + time.perf_counter() - started,
        "trained_parameters": sum(int(np.prod(variable.shape)) for variable in trained.model.trainable_variables),
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
        errors[task], answers[task] = _measure(network, tasks[task].test, settings)
        cost[task] = multiply_adds(network)
    sizes = store.sizes(learned[-1])
    base = 0 if kind.replaces_base else backbone.nbytes
    return {
        "errors": errors,
        "answers": answers,
        "multiply_adds": cost,
        "bytes": {"base": backbone.nbytes, "system": base + sizes["added"], **sizes},
    }


def _measure(network: keras.Model, source: Source, settings: SequenceSettings) -> tuple[dict[str, Any], str]:
    """Returns the errors of a network on a split, and a digest of all its answers."""
    inputs, digest = settings.inputs.for_size(network.input_shape[1]), hashlib.sha256()
    dataset = make_dataset(
        source, inputs.augment_eval, batch_size=settings.train.batch_size, training=False, **inputs.cache_options()
    )
    spec = tf.TensorSpec([None, *network.input_shape[1:]], dataset.element_spec[0].dtype)
    forward = tf.function(lambda images: network(images, training=False), input_signature=[spec], jit_compile=False)

    def predict(images: tf.Tensor) -> np.ndarray:
        scores = forward(images).numpy()
        digest.update(scores.tobytes())
        return scores

    with surface_data_errors():
        return evaluate(predict, dataset), digest.hexdigest()
