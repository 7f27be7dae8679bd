"""A run: from settings and data to results, top to bottom."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import flags

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.data import TaskData, make_dataset, stream_batches, surface_data_errors
from piggyback_tf.evaluation import evaluate, write_report, write_sequence_report
from piggyback_tf.evaluation.left_out import count_files, files_left_out
from piggyback_tf.files import atomic_file, write_atomically
from piggyback_tf.flags import read_config, settings, verbosity
from piggyback_tf.methods import METHODS, Method
from piggyback_tf.packs import TaskPack
from piggyback_tf.sequences import SequenceSettings, folders_of, provenance, run_sequence, with_start
from piggyback_tf.settings import InputConfig, TrainConfig
from piggyback_tf.training import (
    RESULT_FILE,
    TrainedTask,
    TrainingError,
    check_found,
    finish_training,
    folders_of_methods,
    make_strategy,
    train_task,
)

FLAGS = flags.FLAGS
METRICS_FILE = "metrics.json"
# What `describe_data` says of the images that no decision uses.
TEST_IMAGES = ("test_images", "test_digest")


def run_single(folder: Path, tasks: Mapping[str, TaskData], names: Sequence[str]) -> dict[str, Any]:
    """Learns one task by several methods; returns what `metrics.json` holds.

    Args:
        folder: The run's folder.
        tasks: The task's data by its name.
        names: The methods; the last is the main one.
    """
    ((task, data),), strategy = tasks.items(), prepare_devices()

    # ------------------------------------------------------- backbone and methods
    results = {}
    with strategy.scope():
        backbone = load_backbone(FLAGS.backbone, weights=FLAGS.weights, image_size=FLAGS.image_size, seed=FLAGS.seed)
        inputs = read_config(InputConfig).for_size(backbone.image_size)
        base_hash = backbone.hash
        folders = folders_of_methods(folder, names)
        measured = any((own / RESULT_FILE).exists() for own in folders.values())
        check_found(folder, backbone, describe_data(data), () if measured else TEST_IMAGES)
        for name, own in folders.items():
            own.mkdir(parents=True, exist_ok=True)
            if not (own / RESULT_FILE).exists():
                method = METHODS[name](read_config(METHODS[name].Config))
                method = with_start(method, backbone, data, inputs, seed=FLAGS.seed, folder=own)
                trained = train_task(
                    method,
                    backbone,
                    data,
                    read_config(TrainConfig, method.Config.recipe),
                    inputs,
                    state_dir=own,
                    tensorboard_dir=own / "tensorboard" if FLAGS.tensorboard else None,
                    verbose=verbosity(),
                    title=name,
                )
                if backbone.hash != base_hash:
                    raise TrainingError(f"Method {name} changed the base, which must never happen. Please report this.")
                result = write_result(own, task, name, method, trained, backbone, data, inputs)
                write_atomically(own / RESULT_FILE, json.dumps(result, indent=2) + "\n")
            finish_training(own)
            results[name] = json.loads((own / RESULT_FILE).read_text())

    # ------------------------------------------------------------------- results
    metrics = {
        "task": task,
        "data": FLAGS.data,
        "left_out": files_left_out(data),
        "skipped_images": count_files(files_left_out(data)),
        "base_hash": base_hash,
        "methods": results,
    }
    write_report(folder, metrics)
    write_atomically(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return metrics


def run_tasks(folder: Path, tasks: Mapping[str, TaskData]) -> dict[str, Any]:
    """Learns tasks one after another; returns what `metrics.json` holds.

    Args:
        folder: The run's folder.
        tasks: The data of each task by its name, in the order of learning.
    """
    # ------------------------------------------------------------------ settings
    kind = METHODS[FLAGS.method]
    sequence = SequenceSettings(
        FLAGS.method,
        read_config(kind.Config),
        read_config(TrainConfig, kind.Config.recipe),
        read_config(InputConfig),
        settings(FLAGS.method),
        verbosity(),
        FLAGS.tensorboard,
        FLAGS.task_agnostic,
        FLAGS.forward_transfer,
    )

    # --------------------------------------------------------- devices, backbone
    strategy = prepare_devices()
    with strategy.scope():
        backbone = load_backbone(FLAGS.backbone, weights=FLAGS.weights, image_size=FLAGS.image_size, seed=FLAGS.seed)
        found = {
            f"{task}: {name}": value for task, data in tasks.items() for name, value in describe_data(data).items()
        }
        learned = [task for task, own in folders_of(folder, tasks).items() if (own / RESULT_FILE).exists()]
        measured = tasks if kind.Config.at_once and learned else learned
        unmeasured = [f"{task}: {name}" for task in tasks if task not in measured for name in TEST_IMAGES]
        check_found(folder, backbone, found, unmeasured)

        # ------------------------------------------------------ trainings, results
        metrics = run_sequence(folder, backbone, tasks, sequence)
    metrics["left_out"] = {task: files_left_out(data) for task, data in tasks.items()}
    metrics["skipped_images"] = {task: count_files(found) for task, found in metrics["left_out"].items()}
    write_sequence_report(folder, metrics)
    write_atomically(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return metrics


def prepare_devices() -> tf.distribute.Strategy:
    """Sets determinism and precision, and returns the strategy that the flags name."""
    if FLAGS.deterministic:
        tf.config.experimental.enable_op_determinism()
    if FLAGS.mixed_precision != "none":
        keras.config.set_dtype_policy(f"mixed_{FLAGS.mixed_precision}")
    return make_strategy(FLAGS.strategy)


def describe_data(data: TaskData) -> dict[str, Any]:
    """Returns what a resumed run must find again: classes, and labels, names and sizes of the images of all splits.

    Not their dates and their folder: a copy of the data on another machine is the same data.
    """
    found: dict[str, Any] = {"class_names": list(data.class_names)}
    for split, source in data.splits.items():
        digest = hashlib.sha256(source.labels.tobytes())
        for index in range(len(source)):
            digest.update(f"{source.key(index)}\0{source.stored_bytes(index)}\0".encode("utf-8", "surrogateescape"))
        found |= {f"{split}_images": len(source), f"{split}_digest": digest.hexdigest()}
    return found


def write_result(
    folder: Path,
    task: str,
    name: str,
    method: Method,
    trained: TrainedTask,
    backbone: Backbone,
    data: TaskData,
    inputs: InputConfig,
) -> dict[str, Any]:
    """Measures a trained model, for the first time on the test split, and writes it as a pack or a Keras model."""
    errors = {"validation": measure(trained.model, data.validation, inputs)}
    if data.test is not None:
        errors["test"] = measure(trained.model, data.test, inputs)
    result = {
        **errors,
        "best_epoch": trained.best_epoch + 1,
        "history": {
            name: [100 * value for value in values] if name.endswith("error") else values
            for name, values in trained.history.items()
        },
        "seconds": trained.seconds,
        **provenance(method),
    }
    if method.makes_pack:
        path = folder / f"{task}.task.safetensors"
        pack = TaskPack.from_model(
            trained.model,
            task=task,
            class_names=list(data.class_names),
            backbone=backbone,
            method=name,
            eval_augment=inputs.augment_eval,
            settings=settings(name) | provenance(method),
            errors=errors,
        )
        pack.save(path)
        result |= {"zeros": pack.zeros, "zeros_total": pack.zeros_total} if pack.masks else {}
    else:
        path = folder / f"{task}.keras"
        images = stream_batches(data.train, inputs.augment_eval, batch_size=FLAGS.batch_size, **inputs.existing_cache())
        memory = method.remember(trained.model, backbone, task, images)
        with atomic_file(path) as temporary:
            type(method)(method.config, memory).recall(backbone, task).save(temporary)
    kept = 0 if method.replaces_base else backbone.nbytes
    return result | {
        "file": path.name,
        "bytes": {"task": path.stat().st_size, "base": backbone.nbytes, "kept": kept},
    }


def measure(model: keras.Model, source: Any, inputs: InputConfig) -> dict[str, Any]:
    """Returns the errors of a model on the images of a split."""
    dataset = make_dataset(
        source, inputs.augment_eval, batch_size=FLAGS.batch_size, training=False, **inputs.cache_options()
    )
    # Not Keras' predict: within a strategy's scope it would run the batch on every device.
    spec = tf.TensorSpec([None, *dataset.element_spec[0].shape[1:]], dataset.element_spec[0].dtype)
    predict = tf.function(lambda images: model(images, training=False), input_signature=[spec], jit_compile=False)
    with surface_data_errors():
        return evaluate(predict, dataset)
