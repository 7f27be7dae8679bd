"""Training one task."""

import dataclasses
import itertools
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import DataError, TaskData, make_dataset, surface_data_errors
from piggyback_tf.masking import mask_config
from piggyback_tf.methods import Method
from piggyback_tf.problems import Problem, image_shape_of, network_for, problem_of
from piggyback_tf.settings import InputConfig, TrainConfig
from piggyback_tf.settings.methods import check_is_for, check_learns
from piggyback_tf.training.backup import BackupAndRestore
from piggyback_tf.training.class_weights import class_weights
from piggyback_tf.training.completed_epochs import history_in_percent
from piggyback_tf.training.guards import STEPS_TO_JUDGE, StopAtChance, StopOnNaN, StopWhenDead
from piggyback_tf.training.multi_worker import distributed, fit_on_workers
from piggyback_tf.training.optimizers import make_optimizer
from piggyback_tf.training.progress import Progress
from piggyback_tf.training.schedules import warmup_length
from piggyback_tf.training.sizes import check_image_size
from piggyback_tf.training.strategies import weight_for_replicas, weight_for_workers
from piggyback_tf.training.team import Team
from piggyback_tf.training.tensorboard import TensorBoard


@dataclasses.dataclass(frozen=True)
class TrainedTask:
    """The result of a training.

    Attributes:
        model: The task's model, images to logits, with the weights of the best epoch.
        problem: What it finds in an image.
        history: Values per epoch by name: `loss`, `cross_entropy`, `error` (in percent), and each with `val_` of the
            validation split.
        best_epoch: The epoch, counted from 0, whose weights the model has.
        seconds: Time of the epochs, over all starts of the training.
        class_weights: What each class weighed in the loss, by name; nothing if all weighed the same.
    """

    model: keras.Model
    problem: Problem
    history: dict[str, list[float]]
    best_epoch: int
    seconds: float
    class_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)


def train_task(
    method: Method,
    backbone: Backbone,
    data: TaskData,
    config: TrainConfig,
    inputs: InputConfig,
    *,
    state_dir: str | os.PathLike | None = None,
    tensorboard_dir: str | os.PathLike | None = None,
    verbose: int = 0,
    title: str = "",
    targets: Collection[str] = (),
    team: Team | None = None,
) -> TrainedTask:
    """Trains one task and returns the model of its best epoch on the validation split.

    A method's phases follow one another, each with new optimisers; the best epoch is one of the last phase. The test
    split is not touched. To train on several devices, build the backbone and call this in the scope of a
    `tf.distribute` strategy.

    Args:
        method: What is learned.
        backbone: The network to learn on; not changed.
        data: The task's images.
        config: Optimisers, schedule, length.
        inputs: Augmentation and caching.
        state_dir: Folder in which the training saves its state after each epoch and from which it goes on; it is made
            if it is not there. None keeps nothing.
        tensorboard_dir: Folder for TensorBoard's files, or None.
        verbose: 0 prints nothing; 1 what is trained, the time that it takes, a line an epoch, and one that counts the
            steps; 2 the same without the last.
        title: What is trained, for what is printed; the method by default.
        targets: What the other tasks of the run find. Settings that are for those alone are then not refused.
        team: The machines that train together, all of which call this; in the scope of their strategy.

    Raises:
        TrainingError: If the loss is NaN or stays at chance, the network dies, or the saved state is of another
            training.
        DataError: If images cannot be read or do not have the backbone's size.
        ValueError: If the method does not learn what is to be found in them, or a setting is for none of the tasks.
    """
    team = team or Team()
    check_learns(method.name, method.Config, data.target, f"Task {data.name!r}")
    check_is_for(method.config, {data.target, *targets})
    # Keras draws the seeds of dropout layers without one from here; all else has seeds of its own.
    keras.utils.set_random_seed(config.seed)
    inputs = inputs.for_size(backbone.image_size)
    problem = problem_of(data, image_shape_of(data, inputs.augment_eval, backbone.image_size))
    state_folder = None if state_dir is None else Path(state_dir)
    if state_folder:
        state_folder.mkdir(parents=True, exist_ok=True)
    weights = class_weights(method.config.class_weights, problem, data.train, state_folder)
    head = problem.head(method.config)
    model = method.build(backbone, head, seed=config.seed)
    shape, (network, endpoints) = problem.image_shape, network_for(backbone, head)
    phases = method.phases(config.epochs)
    ends = list(itertools.accumulate(phases))
    backup = BackupAndRestore(state_folder, first_best_epoch=ends[-1] - phases[-1], team=team)
    backup.set_model(model)
    done = backup.epochs_done()
    steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
    progress = None
    method.begin_training(model)
    for phase, (epochs, end) in enumerate(zip(phases, ends, strict=True)):
        model = method.begin_phase(model, phase)
        backup.set_model(model)
        # The state after the last epoch of a phase is one of that phase: the next one changes the model.
        if end < done:
            continue
        _compile(model, method, problem, config, steps_per_epoch, epochs, tuple(weights.values()))
        if end - epochs < done:
            backup.restore()
        watches = [StopOnNaN(method.name, method.groups(model))]
        if config.chance_epochs:
            warmup_epochs = math.ceil(warmup_length(config.warmup_steps, epochs * steps_per_epoch) / steps_per_epoch)
            losses = backup.completed.history.get("cross_entropy", [])
            chance = problem.chance(data.train.labels, tuple(method.heads.values()))
            if chance is not None:
                window = max(config.chance_epochs, math.ceil(STEPS_TO_JUDGE / steps_per_epoch))
                watches.append(StopAtChance(chance, window, warmup_epochs, losses))
            # All machines look at the same images: one that would not could not know that it has to end.
            if method.watches_features:
                watches.append(
                    StopWhenDead(_some_images(data, config, inputs, shape, backbone), network.model, endpoints)
                )
        if end == done:
            for watch in watches:
                watch.set_model(model)
                watch.on_train_begin()  # What was stopped at its last epoch is stopped again.
            continue
        first_epoch = max(done, end - epochs)
        callbacks: list[keras.callbacks.Callback] = [backup]
        if verbose:
            progress = progress or Progress(
                title or method.name,
                {group: sum(map(_size, own)) for group, own in method.groups(model).items()},
                backbone.name,
                epochs=ends[-1],
                first_epoch=first_epoch,
                steps=steps_per_epoch,
                validation_steps=math.ceil(len(data.validation) / config.batch_size),
                batch_size=config.batch_size,
                live=verbose == 1,
            )
            callbacks.append(progress)  # An epoch after which a watch ends the training has its line, too.
        callbacks += [*watches, *method.callbacks(model)]
        if tensorboard_dir is not None:
            callbacks.append(TensorBoard(Path(tensorboard_dir)))
        train, validation = _datasets(data, config, inputs, shape, backbone, first_epoch, team.rows(config.batch_size))
        with surface_data_errors(), fit_on_workers(model, data.train.labels.shape[1:], team):
            model.fit(
                train,
                validation_data=validation,
                epochs=end,
                initial_epoch=first_epoch,
                steps_per_epoch=steps_per_epoch,
                # A number that Keras knows, but of what lies on several machines.
                validation_steps=math.ceil(len(data.validation) / config.batch_size) if team.size > 1 else None,
                shuffle=False,
                callbacks=callbacks,
                verbose=0,
            )
    backup.restore_best()
    completed = backup.completed
    # The state of a training keeps what Keras' metrics give, which are fractions.
    history = history_in_percent(completed.history)
    return TrainedTask(model, problem, history, completed.best_epoch, completed.seconds, weights)


def _size(variable: keras.Variable) -> int:
    return math.prod(variable.shape)


def _compile(
    model: keras.Model,
    method: Method,
    problem: Problem,
    config: TrainConfig,
    steps_per_epoch: int,
    epochs: int,
    weights: Sequence[float],
) -> None:
    """Gives a model new optimisers, for one phase of its training."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    reduction = "sum_over_batch_size" if replicas == 1 else "sum"  # See `weight_for_replicas`.
    model.compile(
        optimizer=make_optimizer(method, model, config, steps_per_epoch, epochs, problem),
        loss=problem.weighted_loss(reduction, weights) if weights else problem.loss(reduction),
        # The second is the loss without what a method adds to it.
        weighted_metrics=problem.metrics(),
        # XLA on the CPU makes the training of depthwise convolutions many times slower, and that of masks hundreds of
        # times. On GPUs that was not measured, so masks go without there, too; see benchmarks/gpu.sh.
        jit_compile="auto" if tf.config.list_physical_devices("GPU") and mask_config(model) is None else False,
    )
    model.optimizer.build(model.trainable_variables)


def _validation(
    data: TaskData,
    config: TrainConfig,
    inputs: InputConfig,
    shape: tuple[int, int],
    backbone: Backbone,
    rows: range | None = None,
) -> tf.data.Dataset:
    """Returns the batches of validation."""
    validation = make_dataset(
        data.validation,
        inputs.augment_eval,
        batch_size=config.batch_size,
        training=False,
        rows=rows,
        **inputs.cache_options(),
    )
    _check_size(validation, backbone, shape, inputs.augment_eval)
    return validation


def _some_images(
    data: TaskData, config: TrainConfig, inputs: InputConfig, shape: tuple[int, int], backbone: Backbone
) -> tf.Tensor:
    """Returns the first batch of the validation images."""
    with surface_data_errors():
        return next(iter(_validation(data, config, inputs, shape, backbone)))[0]


def _datasets(
    data: TaskData,
    config: TrainConfig,
    inputs: InputConfig,
    shape: tuple[int, int],
    backbone: Backbone,
    first_epoch: int,
    rows: range | None,
) -> tuple[tf.data.Dataset, tf.data.Dataset]:
    """Returns the batches of training from an epoch on, and those of validation; of several machines its rows."""
    train = make_dataset(
        data.train,
        inputs.augment_train,
        batch_size=config.batch_size,
        training=True,
        seed=config.seed,
        epochs=config.epochs,
        initial_epoch=first_epoch,
        rows=rows,
        input=inputs.input,
        **inputs.cache_options(),
    )
    validation = _validation(data, config, inputs, shape, backbone, rows)
    _check_size(train, backbone, shape, inputs.augment_train)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if rows is not None:
        train = weight_for_workers(train, config.batch_size, rows, len(data.train), training=True)
        validation = weight_for_workers(validation, config.batch_size, rows, len(data.validation), training=False)
        return distributed(train, rows), distributed(validation, rows)
    if replicas > 1:
        train = weight_for_replicas(train, config.batch_size, replicas)
        validation = weight_for_replicas(validation, config.batch_size, replicas, len(data.validation))
    return train, validation


def _check_size(dataset: tf.data.Dataset, backbone: Backbone, shape: tuple[int, int], augment: str) -> None:
    found = tuple(dataset.element_spec[0].shape[1:3])
    if shape == (backbone.image_size, backbone.image_size):
        check_image_size(augment, found, backbone.image_size)
    elif found != shape:
        raise DataError(
            f"Training images have {found[0]}x{found[1]} pixels after {augment!r}, and those of evaluation "
            f"{shape[0]}x{shape[1]}; a task has one size."
        )
