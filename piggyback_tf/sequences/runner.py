"""Every run goes through here: learns one task or several in turn, measures all after each, goes on after a kill.

A task by itself is a sequence of length one.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Source, TaskData, make_dataset, stream_batches
from piggyback_tf.evaluation.answers import AnswerLog
from piggyback_tf.evaluation.continual import measures
from piggyback_tf.evaluation.results import read_result, write_result
from piggyback_tf.file_names import (
    ALONE_FOLDER,
    MEMORY_FILE,
    RESULT_FILE,
    TENSORBOARD_FOLDER,
    answers_name,
    folders_of,
)
from piggyback_tf.methods import METHODS, Memory, MethodConfig
from piggyback_tf.problems import PROBLEMS, Problem, problem_of
from piggyback_tf.sequences.init_from import with_start
from piggyback_tf.sequences.measure import measure, measure_task_agnostic, measured_batches, multiply_adds
from piggyback_tf.sequences.store import MemoryStore, NetworkStore, PackStore, Store
from piggyback_tf.settings.methods import CONFIGS, check_is_for, check_learns
from piggyback_tf.targets import TARGETS
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, finish_training, train_task
from piggyback_tf.training.graphs import released_graphs
from piggyback_tf.training.team import Team

# What makes the block of a strategy.
Scope = Callable[[], contextlib.AbstractContextManager[Any]]


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
    folder: str | os.PathLike,
    backbone: Backbone,
    tasks: Mapping[str, TaskData],
    settings: SequenceSettings,
    *,
    in_turn: bool = True,
    team: Team | None = None,
    scope: Scope = contextlib.nullcontext,
) -> dict[str, Any]:
    """Learns tasks in their order and measures all that are learned after each.

    A task that has a result is not learned again, and a training that was interrupted goes on after its last epoch.

    Args:
        folder: Where files go; it is made if it is not there.
        backbone: The base.
        tasks: The data of each task in the order of learning; of several, each with a test split.
        settings: How to learn.
        in_turn: Whether each task has a folder of its own, `1_NAME`, and a method that makes no packs keeps what it
            needs to go on. Otherwise there is one task, whose files are in the folder itself, and such a method leaves
            a Keras model.
        team: The machines that train together, all of which call this; its chief does the rest, and has the files.
        scope: Of several machines that of their strategy, in which the base was built. This function is called outside.

    Returns:
        A sequence; see `piggyback_tf.evaluation.results`.

    Raises:
        ValueError: If one of several tasks has no test split, a task too few classes, or a method cannot learn
            what there is to find, on this base, or not so many tasks, or a setting is for tasks of other problems.
        TrainingError: As `train_task`, and if the base was changed.
        ResultsError: If the result of a task is damaged.
    """
    for task, data in tasks.items():
        if data.test is None and len(tasks) > 1:
            raise ValueError(f"Task {task!r} has no test split, on which a sequence measures all tasks.")
        if len(data.class_names) < (fewest := TARGETS[data.target].fewest_classes):
            raise ValueError(f"Task {task!r} has the classes {list(data.class_names)}; a task needs at least {fewest}.")
        check_learns(settings.method, CONFIGS[settings.method], data.target, f"Task {task!r}")
    check_is_for(settings.config, {data.target for data in tasks.values()})
    method = METHODS[settings.method](settings.config)
    method.check_room(backbone, len(tasks))
    sequence = {"method": settings.method, "tasks": list(tasks), "base_hash": backbone.hash}
    sequence["sequential"] = method.sequential
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    folders = folders_of(folder, tasks, in_turn=in_turn)
    kinds: Any = PackStore if method.makes_pack else MemoryStore if in_turn else NetworkStore
    learner = _Learner(backbone, tasks, settings, folders, kinds(backbone, folders), team or Team(), scope)
    sequence["steps"] = steps = learner.learn_all()
    if "task_agnostic" in steps[-1]:
        sequence["task_agnostic"] = steps[-1].pop("task_agnostic")
    if settings.forward_transfer and sequence["sequential"]:
        sequence["alone"] = _learn_alone(folder / ALONE_FOLDER, backbone, tasks, settings, learner.team, scope)
    return sequence | {"measures": measures(sequence)}


def _learn_alone(
    folder: Path,
    backbone: Backbone,
    tasks: Mapping[str, TaskData],
    settings: SequenceSettings,
    team: Team,
    scope: Scope,
) -> dict[str, Any]:
    """Learns every task but the first as if it were the first; returns what was measured of each."""
    alone: dict[str, Any] = {}
    store: Any = PackStore if METHODS[settings.method].makes_pack else MemoryStore
    for task, own in list(folders_of(folder, tasks).items())[1:]:
        folder.mkdir(exist_ok=True)
        learner = _Learner(
            backbone, {task: tasks[task]}, settings, {task: own}, store(backbone, {task: own}), team, scope
        )
        (alone[task],) = learner.learn_all(title=f"{task} alone:")
        # Nothing but its error is needed, and the network would take as much as those of the sequence.
        for needless in (MEMORY_FILE, answers_name(task)):
            (own / needless).unlink(missing_ok=True)
    return alone


@dataclasses.dataclass(frozen=True)
class _Learner:
    """Learns tasks by one method.

    Attributes:
        backbone: The base.
        tasks: The data of each task in the order of learning.
        settings: How to learn.
        folders: The folder of each task.
        store: Where the learned tasks are.
        team: The machines that train together.
        scope: In which a training is built.
    """

    backbone: Backbone
    tasks: Mapping[str, TaskData]
    settings: SequenceSettings
    folders: Mapping[str, Path]
    store: Store
    team: Team = dataclasses.field(default_factory=Team)
    scope: Scope = contextlib.nullcontext

    def learn_all(self, title: str = "") -> list[dict[str, Any]]:
        """Learns the tasks that are not learned yet; returns the steps of all.

        Args:
            title: What is printed of the only task; the method by default.
        """
        settings, names = self.settings, list(self.tasks)
        base_hash, steps = self.backbone.hash, []
        for place, task in enumerate(names, start=1):
            own = self.folders[task]
            own.mkdir(parents=True, exist_ok=True)
            if task not in self._learned_with(task):
                steps.append({"errors": {}})
                continue
            chief = self.team.is_chief
            if not self.team.agree((own / RESULT_FILE).exists()):
                several = f"{settings.method}, task {place} of {len(names)}, {task}:"
                with released_graphs():  # Or each task would take memory until the last is learned.
                    step = self._learn(task, several if len(names) > 1 else title or settings.method)
                if self.backbone.hash != base_hash:
                    raise TrainingError(
                        f"Method {settings.method} changed the base, which must never happen. Please report this."
                    )
                if chief:
                    write_result(own / RESULT_FILE, step)
            if chief:
                finish_training(own)
                self.store.remove_needless(task)
            steps.append(self.team.agree(read_result(own / RESULT_FILE, task) if chief else None))
        # By itself, so that it can be asked for when all is learned.
        infer = len(names) > 1 and all(PROBLEMS[data.target].infers_task for data in self.tasks.values())
        if settings.task_agnostic and infer and "task_agnostic" not in steps[-1]:
            if self.team.is_chief:
                steps[-1]["task_agnostic"] = self._measure_task_agnostic()
                write_result(self.folders[names[-1]] / RESULT_FILE, steps[-1])
            steps[-1] = self.team.agree(steps[-1])
        return steps

    def _learned_with(self, task: str) -> list[str]:
        """Returns the tasks that are learned in the training of one: itself, or all with the last, or none."""
        names = list(self.tasks)
        if not METHODS[self.settings.method].Config.at_once:
            return [task]
        return names if task == names[-1] else []

    def _learn(self, task: str, title: str) -> dict[str, Any]:
        """Learns a task, measures all that are learned, and puts it into the store; returns the step.

        Of several machines the others have done their part when it is trained, and return nothing.
        """
        settings, folder, together = self.settings, self.folders[task], self._learned_with(task)
        inputs = settings.inputs.for_size(self.backbone.image_size)

        # ------------------------------------------------------------------ method
        kind = METHODS[settings.method]
        at_once = kind.Config.at_once
        heads = {name: len(self.tasks[name].class_names) for name in together} if at_once else None
        if not at_once:
            self.store.share_memory(task, self.team)
        # Tasks that are learned at once have no files of their own before.
        method = kind(settings.config, Memory() if at_once else self.store.memory(task), heads)
        data = method.training_data({name: self.tasks[name] for name in together})
        learned = self.store.earlier_packs(task)
        method = with_start(
            method, self.backbone, data, inputs, seed=settings.train.seed, folder=folder, learned=learned
        )

        # --------------------------------------------------------------------- fit
        with self.scope():
            trained = train_task(
                method,
                self.backbone,
                data,
                settings.train,
                inputs,
                state_dir=folder,
                tensorboard_dir=folder / TENSORBOARD_FOLDER if settings.tensorboard else None,
                verbose=settings.verbose,
                title=title,
                targets={each.target for each in self.tasks.values()},
                team=self.team,
            )
        if not self.team.is_chief:
            return {}
        started = time.perf_counter()
        provenance = method.provenance
        if trained.class_weights:
            provenance = provenance | {"weight_of_class": dict(trained.class_weights)}
        about = {
            "method": settings.method,
            "class_names": list(data.class_names),
            "problem": data.target,
            "eval_augment": inputs.augment_eval,
            "settings": dict(settings.settings) | provenance,
        }
        images = stream_batches(
            data.train, inputs.augment_eval, batch_size=settings.train.batch_size, **inputs.existing_cache()
        )
        self.store.add(method, trained.model, task, images, about)
        seconds = trained.seconds + time.perf_counter() - started

        # ----------------------------------------------------------------- measure
        measured = self._measure(task, together)
        own = {"validation": measured["validation"][task]} if task in measured["validation"] else {}
        own |= {"test": measured["errors"][task]} if task in measured["errors"] else {}

        # -------------------------------------------------------------------- pack
        file = self.store.save(task, own)
        sizes = self.store.sizes(task)
        kept = 0 if method.replaces_base else self.backbone.nbytes
        return {
            **measured,
            "best_epoch": trained.best_epoch + 1,
            "history": trained.history,
            "seconds": seconds,
            "trained_parameters": sum(int(np.prod(v.shape)) for v in trained.model.trainable_variables),
            **provenance,
            **file,
            "bytes": {"base": self.backbone.nbytes, "system": kept + sizes["added"], **sizes},
        }

    def _measure(self, last: str, together: Sequence[str]) -> dict[str, Any]:
        """Measures every learned task as the store has it, for the first time on the test split of the new ones.

        Args:
            last: The task that was learned last.
            together: The tasks that were learned in its training.
        """
        method, names = METHODS[self.settings.method](self.settings.config), list(self.tasks)
        errors, validation, answers, cost = {}, {}, {}, {}
        for task in names[: names.index(last) + 1]:
            network, data = self.store.network(method, task, last), self.tasks[task]
            problem = problem_of(data, network.input_shape[1:3])
            # What a task is judged by, of which each answer is recorded as it is counted.
            judge, log = "validation" if data.test is None else "test", AnswerLog(data.target, self.store.probabilities)
            if task in together:
                noted = log if judge == "validation" else None
                validation[task], _ = self._measure_split(network, problem, data.validation, noted)
            if data.test is not None:
                errors[task], answers[task] = self._measure_split(network, problem, data.test, log)
            measured = (errors if judge == "test" else validation).get(task)
            log.write(self.folders[task] / answers_name(task), data, judge, task=task, errors=measured, after=last)
            cost[task] = multiply_adds(network)
        return {"errors": errors, "validation": validation, "answers": answers, "multiply_adds": cost}

    def _measure_split(
        self, network: keras.Model, problem: Problem, images: Source, log: AnswerLog | None
    ) -> tuple[dict[str, Any], str]:
        """Returns what was measured of a network on a split, and a digest of its answers, which `log` notes."""
        inputs = self.settings.inputs.for_size(self.backbone.image_size)
        batches = measured_batches(
            problem, images, inputs.augment_eval, batch_size=self.settings.train.batch_size, **inputs.cache_options()
        )
        return measure(network, problem, inputs.augment_eval, batches, log)

    def _measure_task_agnostic(self) -> dict[str, Any]:
        """Measures all tasks as they are after the last, on images that do not say of which task they are."""
        method, last = METHODS[self.settings.method](self.settings.config), list(self.tasks)[-1]
        return measure_task_agnostic(
            lambda task: self.store.network(method, task, last),
            {task: self._batches(data.test) for task, data in self.tasks.items()},
            self.backbone,
            self.store.packs(),
            probabilities=self.store.probabilities,
        )

    def _batches(self, images: Source) -> tf.data.Dataset:
        """Returns the images of a split in their order, prepared for evaluation, and their labels."""
        inputs = self.settings.inputs.for_size(self.backbone.image_size)
        return make_dataset(
            images,
            inputs.augment_eval,
            batch_size=self.settings.train.batch_size,
            training=False,
            **inputs.cache_options(),
        )
