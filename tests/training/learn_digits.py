"""Learns digits as one process, or as one of several workers; the tests of these compare what is learned.

    python -m tests.training.learn_digits STRATEGY OUT SETTINGS

With the strategy `mirrored` a process has two devices, which share each batch as two workers do. SETTINGS is a JSON
object: `method`, and perhaps `backbone`, `weights`, the number of `tasks` to learn in turn, and settings of the
training. Each process writes OUTINDEX.npz, with every array that it has learned, by the number of the training and its
path, and how many images it has read while it learned. What the run leaves is in the folder OUTINDEX.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import load_backbone, named_variables
from piggyback_tf.data import load_data
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import SequenceSettings, run_sequence, runner
from piggyback_tf.training import InputConfig, TrainConfig, prepare_devices
from piggyback_tf.training.cluster import read_cluster
from piggyback_tf.training.team import joined_team


def main(strategy_name: str, out: str, text: str) -> None:
    settings = json.loads(text)
    name, base = settings.pop("method"), settings.pop("backbone", "shapesnet")
    weights, count, kind = settings.pop("weights", None), settings.pop("tasks", 1), METHODS[name]
    found: dict[str, Any] = {}
    cluster = read_cluster() if strategy_name == "multi_worker" else None
    with joined_team(cluster, 90, lambda sentence, _: (print(sentence, flush=True), os._exit(3))) as team:
        # Of each task other images are held out.
        tasks = {f"digits{seed}": load_data("digits", seed=seed) for seed in range(count)}
        source = type(tasks["digits0"].train)
        trainings, reads, read = [0], [0], source.read

        def counted(source: Any, index: int) -> Any:
            reads[0] += 1
            return read(source, index)

        source.read, train_task = counted, runner.train_task

        def kept(*arguments: Any, **named: Any) -> Any:
            before, trained = reads[0], train_task(*arguments, **named)
            found["reads"] = found.get("reads", 0) + reads[0] - before
            for path, variable in named_variables(trained.model).items():
                found[f"{trainings[0]}/{path}"] = variable.numpy()
            trainings[0] += 1
            return trained

        runner.train_task = kept
        if strategy_name == "mirrored":
            devices = [tf.config.LogicalDeviceConfiguration()] * 2
            tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
        strategy = prepare_devices(strategy_name, "none", deterministic=False)
        with strategy.scope():
            backbone = load_backbone(base, weights=weights, image_size=32)
        train = TrainConfig(**{**kind.Config.recipe, "epochs": 4, "batch_size": 16, **settings})
        sequence = SequenceSettings(name, kind.Config(), train, InputConfig(cache="none"), forward_transfer=count > 1)
        folder = Path(f"{out}{team.index}")
        # As `train` does it.
        outer, inner = (strategy.scope, nullcontext) if team.size == 1 else (nullcontext, strategy.scope)
        with outer():
            run_sequence(folder, backbone, tasks, sequence, in_turn=count > 1, team=team, scope=inner)
    np.savez(f"{out}{team.index}.npz", **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
