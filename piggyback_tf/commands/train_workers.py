"""Several machines at one run of `train`: what they can do together, where each works, and how one ends with others."""

import contextlib
import dataclasses
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from absl import flags, logging

from piggyback_tf.commands.answers import ENDED, UsageError, program_name, refuse
from piggyback_tf.commands.train_request import TrainRequest
from piggyback_tf.data import TARGETS, TaskData
from piggyback_tf.flags import read_config
from piggyback_tf.settings import CONFIGS, InputConfig
from piggyback_tf.training import TrainingError, run_folder
from piggyback_tf.training.cluster import VARIABLE, Cluster, read_cluster
from piggyback_tf.training.team import Team, joined_team

FLAGS = flags.FLAGS
_STRATEGY = "multi_worker"
# What has to be the same everywhere, lest machines compute different things.
_PACKAGES = ("piggyback_tf", "tensorflow", "keras")


@contextlib.contextmanager
def workers(request: TrainRequest) -> Iterator[tuple[Team, Path]]:
    """Waits for the other machines, if there are others; yields them, and the folder of this one.

    The chief's folder is that of the run. The others have one of their own while the block runs.

    Args:
        request: What is to be learned.

    Raises:
        flags.IllegalFlagValueError: If several machines cannot do that together.
        TrainingError: If one does not come, or the folder cannot be had.
    """
    cluster = _cluster(request)
    with contextlib.ExitStack() as stack:
        folder = None
        if cluster is None or not cluster.index:
            folder = stack.enter_context(run_folder(FLAGS.output_dir))
        own = None if folder else stack.enter_context(tempfile.TemporaryDirectory(prefix="piggyback-worker-"))

        def end(sentence: str, number: int) -> NoReturn:
            """Ends the process although its main thread may wait for TensorFlow; files are whole or not there."""
            if own is not None:
                shutil.rmtree(own, ignore_errors=True)
            sys.stdout = sys.__stdout__ or sys.stderr
            refuse(f"{program_name()} train", sentence, as_json=FLAGS.json)
            sys.stderr.flush()
            os._exit(ENDED)

        team = stack.enter_context(joined_team(cluster, FLAGS.worker_timeout, end))
        yield team, folder or Path(own or "")


def inputs_of(team: Team) -> InputConfig:
    """Returns the settings of the input: a machine of several caches nothing, and reads its own images alone."""
    inputs = read_config(InputConfig)
    return inputs if team.size == 1 else dataclasses.replace(inputs, cache="none")


def check_targets(tasks: Mapping[str, TaskData], team: Team) -> None:
    """Refuses tasks whose images have a size and targets of their own, of several machines.

    Raises:
        UsageError: With the first such task.
    """
    for data in tasks.values() if team.size > 1 else ():
        if (target := TARGETS[data.target]).own_size:
            raise UsageError(f"{data.spec!r} has {target}, which --strategy={_STRATEGY} does not train with.")


def versions() -> dict[str, str]:
    """Returns the versions of what computes, by name."""
    found = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _cluster(request: TrainRequest) -> Cluster | None:
    """Returns the machines that work at a run together; None for one by itself."""
    if FLAGS.strategy != _STRATEGY:
        if FLAGS["worker_timeout"].present:
            raise flags.IllegalFlagValueError(f"--worker_timeout goes with --strategy={_STRATEGY}.")
        if FLAGS.mask_gradients != FLAGS["mask_gradients"].default:
            raise flags.IllegalFlagValueError(
                f"--mask_gradients={FLAGS.mask_gradients} goes with --strategy={_STRATEGY}: one machine sends no "
                "gradients."
            )
        with contextlib.suppress(TrainingError):
            if VARIABLE in os.environ and read_cluster():
                logging.warning(
                    "%s names several machines, and --strategy=%s trains on this one alone. With --strategy=%s they "
                    "train together.",
                    VARIABLE,
                    FLAGS.strategy,
                    _STRATEGY,
                )
        return None
    cluster = read_cluster()
    _check_together(request)
    cluster.rows(FLAGS.batch_size)
    return cluster


def _check_together(request: TrainRequest) -> None:
    """Refuses what several machines cannot do together."""
    together = f"--strategy={_STRATEGY}"
    able = [name for name in CONFIGS.names() if not CONFIGS[name].why_one_machine]
    problem = ""
    if unable := [name for name in request.methods if name not in able]:
        problem = (
            f"Method {unable[0]} does not train with {together}: {CONFIGS[unable[0]].why_one_machine}. These do: "
            f"{', '.join(able)}."
        )
    elif FLAGS.init_from:
        problem = f"--init_from does not go with {together}."
    elif FLAGS.skip_broken_images:
        problem = f"--skip_broken_images does not go with {together}; remove the files that `check` lists."
    elif FLAGS.cache not in ("auto", "none"):
        problem = f"--cache={FLAGS.cache} does not go with {together}: each machine reads its images when they come."
    elif FLAGS.norm_statistics != "frozen" and any("norm" in CONFIGS[name].trains for name in request.methods):
        problem = (
            f"--norm_statistics={FLAGS.norm_statistics} does not go with {together}: each machine would follow the "
            "statistics of its own images. Use frozen."
        )
    elif FLAGS.mixed_precision == "float16":
        problem = f"--mixed_precision=float16 does not go with {together}; bfloat16 does."
    elif FLAGS.head_dropout:
        problem = f"--head_dropout does not go with {together}: each machine would drop others."
    elif FLAGS.worker_timeout < 1:
        problem = f"--worker_timeout must be at least 1. Received: {FLAGS.worker_timeout}."
    if problem:
        raise flags.IllegalFlagValueError(problem)
