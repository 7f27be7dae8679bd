"""train: learns a task on a frozen backbone, or several in turn.

Flags, names and data are looked at before Keras is loaded, which takes seconds; a run that is complete never loads it.
"""

import json
from pathlib import Path
from typing import Any

from absl import flags, logging

from piggyback_tf.backbones.own import is_model_file
from piggyback_tf.backbones.registry import check_request
from piggyback_tf.commands.answers import Answer
from piggyback_tf.commands.common import prepare_for
from piggyback_tf.commands.looking import look_first
from piggyback_tf.commands.program import Program
from piggyback_tf.data import TaskData, describe_images, load_data, output_size
from piggyback_tf.evaluation import idle_masks, results_table, sequence_table
from piggyback_tf.evaluation.task_agnostic import task_agnostic_lines
from piggyback_tf.flags import check_unused, define_flags, read_config, settings_of_run, verbosity
from piggyback_tf.packs import check_task_name
from piggyback_tf.packs.pack import PACK_SUFFIX
from piggyback_tf.quiet import load_tensorflow
from piggyback_tf.sequences import folders_of, parse_tasks
from piggyback_tf.settings import CONFIGS, InputConfig, TrainConfig, complete_run
from piggyback_tf.training import (
    RESULT_FILE,
    TrainingError,
    check_file_name,
    check_settings,
    folders_of_methods,
    run_folder,
)
from piggyback_tf.training.sizes import check_image_size

FLAGS = flags.FLAGS
METRICS_FILE = "metrics.json"
_TEXT = """Learns a task on a frozen network, or several in turn.

    {call} --data=folder:PHOTOS --output_dir=runs/photos
    {call} --data=digits --backbone=shapesnet --output_dir=runs/digits

PHOTOS has the images of each class in PHOTOS/train/CLASS, and may have PHOTOS/val and PHOTOS/test. After a kill the
same command goes on where the last completed epoch ended.
"""


def _run(arguments: list[str]) -> Answer:
    del arguments
    logging.set_verbosity(logging.INFO)
    specs, names, inputs = _check_flags()
    with run_folder(FLAGS.output_dir) as folder:
        check_settings(folder, settings_of_run(names[-1], names[:-1]), complete=complete_run)
        metrics = _finished(folder, len(specs))
        if metrics is None:
            for name in filter(None, specs):
                _check_name(folder, name)
            tasks: dict[str, TaskData] = {}
            for name, spec in specs.items():
                data = _read_data(spec)
                tasks[name or _check_name(folder, data.name)] = data
            _look_first(folder, tasks, names, inputs)
            if verbosity():
                print("\n".join(describe_images(data, task) for task, data in tasks.items()), flush=True)
            load_tensorflow()
            from piggyback_tf.run import run_single, run_tasks

            metrics = run_tasks(folder, tasks) if FLAGS.tasks else run_single(folder, tasks, names)
    if FLAGS.tasks:
        text = "\n".join([*sequence_table(metrics), "", *task_agnostic_lines(metrics)]).rstrip()
    else:
        text = "\n".join([*results_table(metrics["methods"]), *idle_masks(metrics["methods"])])
    report = folder / "report.md"
    return Answer({"folder": str(folder), "report": str(report), **metrics}, f"{text}\n\nReport: {report}")


def _check_flags() -> tuple[dict[str, str], list[str], InputConfig]:
    """Checks all that can be checked of the flags by themselves.

    Returns:
        The data of each task by its name, which is empty if it is to be that of the data; the methods, those to compare
        with before the main one; and augmentation and caching, for the backbone's size.
    """
    if bool(FLAGS.tasks) == bool(FLAGS.data):
        raise flags.IllegalFlagValueError("One of --data, for one task, and --tasks, for several, is needed.")
    if FLAGS.tasks and (FLAGS.task or FLAGS.baseline):
        raise flags.IllegalFlagValueError("--task and --baseline go with --data; --tasks names its tasks itself.")
    if FLAGS.data and (FLAGS["task_agnostic"].present or FLAGS["forward_transfer"].present):
        raise flags.IllegalFlagValueError("--task_agnostic and --forward_transfer go with --tasks.")
    if FLAGS.method in FLAGS.baseline:
        raise flags.IllegalFlagValueError(f"--baseline={FLAGS.method} is the --method itself; leave it out.")
    names = [*dict.fromkeys(FLAGS.baseline), FLAGS.method]
    check_unused(names)
    if FLAGS.data and (at_once := [name for name in names if CONFIGS[name].at_once]):
        raise flags.IllegalFlagValueError(f"Method {at_once[0]} learns several tasks at once; give them by --tasks.")
    if FLAGS.forward_transfer and CONFIGS[FLAGS.method].at_once:
        raise flags.IllegalFlagValueError(
            f"Method {FLAGS.method} learns all tasks at once, none after another: there is no forward transfer."
        )
    for name in names:
        read_config(CONFIGS[name])
        read_config(TrainConfig, CONFIGS[name].recipe)
    _, _, image_size = check_request(FLAGS.backbone, FLAGS.weights, FLAGS.image_size)
    if is_model_file(FLAGS.backbone) and FLAGS.mixed_precision != "none":
        raise flags.IllegalFlagValueError(
            f"--mixed_precision={FLAGS.mixed_precision}: the layers of {FLAGS.backbone!r} compute as its file says; "
            "leave it out."
        )
    inputs = read_config(InputConfig).for_size(image_size)
    for augment in (inputs.augment_train, inputs.augment_eval):
        check_image_size(output_size(augment), FLAGS.backbone, image_size, augment)
    if FLAGS.tasks:
        return parse_tasks(FLAGS.tasks), names, inputs
    return {check_task_name(FLAGS.task) if FLAGS.task else "": FLAGS.data}, names, inputs


def _finished(folder: Path, tasks: int) -> dict[str, Any] | None:
    """Returns what `metrics.json` holds of a run that is complete, else None."""
    if not (folder / METRICS_FILE).exists():
        return None
    metrics = json.loads((folder / METRICS_FILE).read_text())
    if FLAGS.tasks:
        # What was left out can be trained and measured later.
        transfer = not FLAGS.forward_transfer or metrics["measures"].get("forward_transfer") is not None
        if not transfer or (FLAGS.task_agnostic and tasks > 1 and "task_agnostic" not in metrics):
            return None
    logging.info("The run in %s is complete; delete the folder to run it again.", folder)
    return metrics


def _read_data(spec: str) -> TaskData:
    """Returns the data of a task, split as the flags say."""
    prepare_for(spec)
    return load_data(
        spec,
        data_dir=FLAGS.data_dir,
        val_fraction=FLAGS.val_fraction,
        seed=FLAGS.seed,
        skip_broken_images=FLAGS.skip_broken_images,
        cache_dir=FLAGS.cache_dir or None,
        raise_problems=False,
    )


def _check_name(folder: Path, task: str) -> str:
    """Returns the name of a task if its files can be written into the run's folder."""
    flag = "--tasks=NAME=DATA" if FLAGS.tasks else "--task=NAME"
    check_file_name(folder, f"{check_task_name(task)}{PACK_SUFFIX}", f"Give the task another name: {flag}.")
    return task


def _look_first(folder: Path, tasks: dict[str, TaskData], names: list[str], inputs: InputConfig) -> None:
    """Looks at all images of a run, unless nothing is left to be trained."""
    joined = CONFIGS[FLAGS.method].at_once
    if FLAGS.tasks:
        learned = [task for task, own in folders_of(folder, tasks).items() if (own / RESULT_FILE).exists()]
    else:
        done = all((own / RESULT_FILE).exists() for own in folders_of_methods(folder, names).values())
        learned = tasks if done else ()
    look_first(folder, tasks, inputs, learned=learned, joined=joined)


PROGRAM = Program(
    _TEXT,
    define_flags,
    _run,
    required=("output_dir",),
    errors=(TrainingError,),
    interrupted="stopped. The same command goes on after the last completed epoch.",
)
