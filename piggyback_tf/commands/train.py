"""train: learns a task on a frozen backbone, or several in turn.

Flags, names and data are looked at before Keras is loaded, which takes seconds; a run that is complete never loads it.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from absl import flags, logging

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import Answer
from piggyback_tf.commands.train_check_images import look_first
from piggyback_tf.commands.train_request import TrainRequest, read_request, read_tasks
from piggyback_tf.commands.train_workers import check_targets, inputs_of, versions, workers
from piggyback_tf.data import TaskData, describe_images
from piggyback_tf.evaluation import summary, write_report
from piggyback_tf.evaluation.left_out import count_files, files_left_out
from piggyback_tf.evaluation.results import read_metrics, write_metrics
from piggyback_tf.file_names import METRICS_FILE, REPORT_FILE, RESULT_FILE
from piggyback_tf.flags import define_flags, read_config, settings, settings_of_run, verbosity
from piggyback_tf.quiet import load_tensorflow
from piggyback_tf.settings import CONFIGS, TrainConfig, complete_run
from piggyback_tf.training import TrainingError, check_settings, folders_of_methods
from piggyback_tf.training.team import Team

FLAGS = flags.FLAGS
# A cross-entropy below this part of that of the first epoch is one of a head that learns.
_LEARNS = 0.98
_TEXT = """Learns a task on a frozen network, or several tasks in turn.

    {call} --data=folder:PHOTOS --output_dir=runs/photos
    {call} --data=digits --backbone=shapesnet --output_dir=runs/digits

The images of each class are in PHOTOS/train/CLASS. PHOTOS/val and PHOTOS/test are optional. If a run is interrupted,
the same command continues after the last completed epoch.
"""


def _run(arguments: list[str]) -> Answer:
    del arguments
    logging.set_verbosity(logging.INFO)
    request = read_request()
    settings_now = settings_of_run(request.methods[-1], request.methods[:-1])
    with workers(request) as (team, folder):
        team.check_same(settings_now | versions(), prefix="--")
        check_settings(folder, settings_now, complete=complete_run)
        metrics = team.agree(_finished(folder)) or _learn(folder, request, team)
    if not team.is_chief:
        return Answer({"worker": team.index, **metrics}, f"Worker {team.index} has done its part. The chief has all.")
    report = folder / REPORT_FILE
    text = "\n".join([*summary(metrics), "", f"Report: {report}"])
    return Answer({"folder": str(folder), "report": str(report), **metrics}, text)


def _learn(folder: Path, request: TrainRequest, team: Team) -> dict[str, Any]:
    """Learns what is asked for, from top to bottom; returns what `metrics.json` holds."""
    verbose = verbosity() if team.is_chief else 0
    inputs = inputs_of(team)
    # ---------------------------------------------------------------------- data
    tasks = read_tasks(folder, request)
    check_targets(tasks, team)
    folders = request.folders(folder, tasks)
    done = team.agree({task: [(own[task] / RESULT_FILE).exists() for own in folders.values()] for task in tasks})
    at_once = CONFIGS[FLAGS.method].at_once
    learned = [task for task in tasks if all(done[task])]
    look_first(folder, tasks, inputs.for_size(request.image_size), learned=learned, joined=at_once, team=team)
    if verbose:
        print("\n".join(describe_images(data, task) for task, data in tasks.items()), flush=True)

    # ------------------------------------------------------------------ backbone
    load_tensorflow()
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.sequences import SequenceSettings, run_sequence
    from piggyback_tf.training import check_found, describe_tasks, prepare_devices

    strategy = prepare_devices(FLAGS.strategy, FLAGS.mixed_precision, deterministic=FLAGS.deterministic)
    with strategy.scope():
        backbone = load_backbone(FLAGS.backbone, weights=FLAGS.weights, image_size=FLAGS.image_size, seed=FLAGS.seed)
    # In the scope of several machines a new variable waits for all of them. So what the chief does alone is outside.
    outer, inner = (strategy.scope, nullcontext) if team.size == 1 else (nullcontext, strategy.scope)
    with outer():
        measured = [task for task in tasks if any(done[task])]
        measured = list(tasks) if at_once and measured else measured
        found = describe_tasks(tasks, measured, in_turn=request.in_turn)
        team.check_same({"base": backbone.hash, **found[0]})
        check_found(folder, backbone, *found)

        # --------------------------------- methods: fit, measure, pack, task by task
        sequences = {}
        for name, own in folders_of_methods(folder, request.methods).items():
            config = SequenceSettings(
                name,
                read_config(CONFIGS[name]),
                read_config(TrainConfig, CONFIGS[name].recipe),
                inputs,
                settings(name),
                verbose,
                FLAGS.tensorboard and team.is_chief,
                FLAGS.task_agnostic,
                FLAGS.forward_transfer,
            )
            try:
                sequences[name] = run_sequence(
                    own, backbone, tasks, config, in_turn=request.in_turn, team=team, scope=inner
                )
            except TrainingError as error:
                if sequences:
                    write_report(folder, _results(sequences, tasks))
                raise TrainingError(
                    " ".join([str(error), *_finished_methods(sequences, folder / REPORT_FILE)])
                ) from error

    # ------------------------------------------------------------------- results
    metrics = _results(sequences, tasks)
    if team.is_chief:
        write_report(folder, metrics)
        write_metrics(folder / METRICS_FILE, metrics)
        metrics = read_metrics(folder / METRICS_FILE)
    return team.agree(metrics)


def _results(sequences: dict[str, Any], tasks: dict[str, TaskData]) -> dict[str, Any]:
    """Returns what `metrics.json` holds of methods that are finished."""
    left_out = {task: files_left_out(data) for task, data in tasks.items()}
    return {
        "methods": sequences,
        "data": {task: data.spec for task, data in tasks.items()},
        "left_out": left_out,
        "skipped_images": {task: count_files(files) for task, files in left_out.items()},
    }


def _finished_methods(sequences: dict[str, Any], report: Path) -> list[str]:
    """Returns sentences about the methods that were finished before one broke off."""
    sentences = []
    for name, sequence in sequences.items():
        sentences.append(f"{name} is finished, with an error of {sequence['measures']['average_error']:.2f} %.")
        losses = sequence["steps"][-1].get("history", {}).get("cross_entropy", [0.0])
        if name == "classifier_only" and losses[-1] < _LEARNS * losses[0]:
            sentences.append(
                f"Its head learned from the same network, from a cross-entropy of {losses[0]:.3f} to {losses[-1]:.3f}, "
                "so that the network is not what is at fault."
            )
    return [*sentences, f"{report} shows what is finished."] if sentences else []


def _finished(folder: Path) -> dict[str, Any] | None:
    """Returns what `metrics.json` holds of a run that is complete, else None."""
    if not (folder / METRICS_FILE).exists():
        return None
    metrics = read_metrics(folder / METRICS_FILE)
    # What was left out can be trained and measured later.
    for sequence in metrics["methods"].values():
        transfer = not FLAGS.forward_transfer or sequence["measures"].get("forward_transfer") is not None
        if not transfer or (FLAGS.task_agnostic and len(sequence["tasks"]) > 1 and "task_agnostic" not in sequence):
            return None
    logging.info("The run in %s is complete; delete the folder to run it again.", folder)
    return metrics


PROGRAM = Program(
    _TEXT,
    define_flags,
    _run,
    required=("output_dir",),
    errors=(TrainingError,),
    interrupted="stopped. The same command goes on after the last completed epoch.",
)
