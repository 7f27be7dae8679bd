"""train: learns a task on a frozen backbone, or several in turn."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from absl import flags, logging

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.commands.program import Program
from piggyback_tf.data import TaskData, load_data, make_dataset, surface_data_errors
from piggyback_tf.evaluation import (
    evaluate,
    idle_masks,
    results_table,
    sequence_table,
    write_report,
    write_sequence_report,
)
from piggyback_tf.evaluation.task_agnostic import task_agnostic_lines
from piggyback_tf.files import atomic_file, write_atomically
from piggyback_tf.flags import check_unused, define_flags, make_method, read_config, settings, settings_of_run
from piggyback_tf.methods import METHODS, Method
from piggyback_tf.packs import TaskPack, check_task_name
from piggyback_tf.sequences import SequenceSettings, parse_tasks, provenance, run_sequence, with_start
from piggyback_tf.training import (
    InputConfig,
    TrainConfig,
    TrainedTask,
    TrainingError,
    check_found,
    check_settings,
    complete_run,
    finish_training,
    make_strategy,
    run_folder,
    train_task,
)

FLAGS = flags.FLAGS
METRICS_FILE = "metrics.json"
RESULT_FILE = "result.json"
_TEXT = """Learns a task on a frozen network, or several in turn.

    {call} --data=folder:PHOTOS --output_dir=runs/photos
    {call} --data=digits --backbone=shapesnet --output_dir=runs/digits

PHOTOS has the images of each class in PHOTOS/train/CLASS, and may have PHOTOS/val and PHOTOS/test. After a kill the
same command goes on where the last completed epoch ended.
"""


def run(folder: Path) -> dict[str, Any]:
    """Goes from settings to results of one task, top to bottom; returns what `metrics.json` holds."""
    # ------------------------------------------------------------------ settings
    inputs = read_config(InputConfig)
    names = [*dict.fromkeys(FLAGS.baseline), FLAGS.method]
    if FLAGS.method in FLAGS.baseline:
        raise flags.IllegalFlagValueError(f"--baseline={FLAGS.method} is the --method itself; leave it out.")
    check_unused(names)
    methods = {name: make_method(name) for name in names}
    if at_once := [name for name in names if methods[name].at_once]:
        raise flags.IllegalFlagValueError(f"Method {at_once[0]} learns several tasks at once; give them by --tasks.")
    check_settings(folder, settings_of_run(FLAGS.method, names[:-1]), complete=complete_run)
    if (folder / METRICS_FILE).exists():
        logging.info("The run in %s is complete; delete the folder to run it again.", folder)
        return json.loads((folder / METRICS_FILE).read_text())

    # ------------------------------------------------------------------- devices
    strategy = prepare_devices()

    # ---------------------------------------------------------------------- data
    data = read_data(FLAGS.data)
    task = check_task_name(FLAGS.task or data.name)

    # ------------------------------------------------------- backbone and methods
    results = {}
    with strategy.scope():
        backbone = load_backbone(FLAGS.backbone, weights=FLAGS.weights, image_size=FLAGS.image_size, seed=FLAGS.seed)
        inputs = inputs.for_size(backbone.image_size)
        base_hash = backbone.hash
        check_found(folder, backbone, describe_data(data))
        for name, method in methods.items():
            # The main method's files lie in the folder itself, those of the baselines beside them.
            own = folder if name == FLAGS.method else folder / "baselines" / name
            own.mkdir(parents=True, exist_ok=True)
            if not (own / RESULT_FILE).exists():
                logging.info("%s on %s: %d training images", name, task, len(data.train))
                method = with_start(method, backbone, data, inputs, seed=FLAGS.seed, folder=own)
                trained = train_task(
                    method,
                    backbone,
                    data,
                    read_config(TrainConfig, method.recipe),
                    inputs,
                    state_dir=own,
                    tensorboard_dir=own / "tensorboard" if FLAGS.tensorboard else None,
                    verbose=verbosity(),
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
        "skipped_images": count_skipped(data),
        "base_hash": base_hash,
        "methods": results,
    }
    write_report(folder, metrics)
    write_atomically(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    return metrics


def run_tasks(folder: Path) -> dict[str, Any]:
    """Learns the tasks of --tasks one after another; returns what `metrics.json` holds."""
    # ------------------------------------------------------------------ settings
    check_unused([FLAGS.method])
    kind = METHODS[FLAGS.method]
    sequence = SequenceSettings(
        FLAGS.method,
        read_config(kind.Config),
        read_config(TrainConfig, kind.recipe),
        read_config(InputConfig),
        settings(FLAGS.method),
        verbosity(),
        FLAGS.tensorboard,
        FLAGS.task_agnostic,
        FLAGS.forward_transfer,
    )
    specs = parse_tasks(FLAGS.tasks)
    check_settings(folder, settings_of_run(FLAGS.method), complete=complete_run)
    if (folder / METRICS_FILE).exists():
        metrics = json.loads((folder / METRICS_FILE).read_text())
        # What was left out can be trained and measured later.
        transfer = not FLAGS.forward_transfer or metrics["measures"].get("forward_transfer") is not None
        if transfer and (not FLAGS.task_agnostic or len(specs) == 1 or "task_agnostic" in metrics):
            logging.info("The run in %s is complete; delete the folder to run it again.", folder)
            return metrics

    # --------------------------------------------------- devices, data, backbone
    strategy = prepare_devices()
    tasks = {task: read_data(spec) for task, spec in specs.items()}
    with strategy.scope():
        backbone = load_backbone(FLAGS.backbone, weights=FLAGS.weights, image_size=FLAGS.image_size, seed=FLAGS.seed)
        found = {
            f"{task}: {name}": value for task, data in tasks.items() for name, value in describe_data(data).items()
        }
        check_found(folder, backbone, found)

        # ------------------------------------------------------ trainings, results
        metrics = run_sequence(folder, backbone, tasks, sequence)
    metrics["skipped_images"] = {task: count_skipped(data) for task, data in tasks.items()}
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


def read_data(spec: str) -> TaskData:
    """Returns the data of a task, split as the flags say."""
    return load_data(
        spec,
        data_dir=FLAGS.data_dir,
        val_fraction=FLAGS.val_fraction,
        seed=FLAGS.seed,
        skip_broken_images=FLAGS.skip_broken_images,
        cache_dir=FLAGS.cache_dir or None,
    )


def count_skipped(data: TaskData) -> dict[str, int]:
    """Returns how many broken images each split was left without."""
    splits = {split: getattr(data, split) for split in ("train", "validation", "test")}
    return {split: len(source.skipped) for split, source in splits.items() if source is not None}


def verbosity() -> int:
    """Returns how much a training prints."""
    return (1 if sys.stdout.isatty() else 2) if FLAGS.verbose is None else FLAGS.verbose


def describe_data(data: TaskData) -> dict[str, Any]:
    """Returns what a resumed run must find again: classes, and labels, names and sizes of the images of all splits.

    Not their dates and their folder: a copy of the data on another machine is the same data.
    """
    found: dict[str, Any] = {"class_names": list(data.class_names)}
    for split in ("train", "validation", "test"):
        source = getattr(data, split)
        if source is None:
            continue
        digest = hashlib.sha256(source.labels.tobytes())
        for index in range(len(source)):
            digest.update(f"{source.key(index)}\0{source.stored_bytes(index)}\0".encode())
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
        images = make_dataset(data.train, inputs.augment_eval, batch_size=FLAGS.batch_size, training=False)
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


def _run(arguments: list[str]) -> None:
    del arguments
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    if bool(FLAGS.tasks) == bool(FLAGS.data):
        raise flags.IllegalFlagValueError("One of --data, for one task, and --tasks, for several, is needed.")
    if FLAGS.tasks and (FLAGS.task or FLAGS.baseline):
        raise flags.IllegalFlagValueError("--task and --baseline go with --data; --tasks names its tasks itself.")
    if FLAGS.data and (FLAGS["task_agnostic"].present or FLAGS["forward_transfer"].present):
        raise flags.IllegalFlagValueError("--task_agnostic and --forward_transfer go with --tasks.")
    with run_folder(FLAGS.output_dir) as folder:
        metrics = run_tasks(folder) if FLAGS.tasks else run(folder)
    if FLAGS.tasks:
        print("\n".join([*sequence_table(metrics), "", *task_agnostic_lines(metrics)]).rstrip())
    else:
        print("\n".join([*results_table(metrics["methods"]), *idle_masks(metrics["methods"])]))
    print(f"\nReport: {folder / 'report.md'}")


PROGRAM = Program(_TEXT, define_flags, _run, required=("output_dir",), errors=(TrainingError,))
