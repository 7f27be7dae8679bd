"""Learning tasks in a few steps, without a data set."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import TaskData
from piggyback_tf.methods import METHODS, Memory, Method
from piggyback_tf.problems import HEAD_NAME
from piggyback_tf.training import TrainConfig
from tests.methods.real_training import train_and_remember
from tests.methods.toy import toy_backbone


def noise_images(size: int, count: int = 8, seed: int = 0) -> np.ndarray:
    """Returns images `[count, size, size, 3]` of noise."""
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


def learn(
    method: Method, backbone: Backbone, task: str, file: Path, optimizer: str = "sgd"
) -> tuple[Memory, np.ndarray]:
    """Learns a task of three classes with a few large steps in each phase.

    Args:
        method: With the memory of the tasks before.
        backbone: The base.
        task: The task's name.
        file: Where the memory is saved.
        optimizer: Name of the optimiser.

    Returns:
        The memory as its file has it, and the trained model's answers to `noise_images`.
    """
    number = len(method.memory.tasks)
    model = method.build(backbone, 3, seed=number)
    # With a head of zeros, the first of the few steps would be the head's alone.
    head = model.get_layer(HEAD_NAME).kernel
    head.assign(keras.initializers.GlorotUniform(seed=number)(head.shape))
    images = noise_images(backbone.image_size, seed=number + 1)
    labels = np.arange(len(images)) % 3
    method.begin_training(model)
    for phase in range(len(method.phases(6))):
        model = method.begin_phase(model, phase)
        optimizer_ = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": 0.05}})
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer_, loss, run_eagerly=True)
        for _ in range(3):
            model.train_on_batch(images, labels)
    method.remember(model, backbone, task, []).save(file)
    return Memory.load(file), answers(model)


def answers(model: keras.Model) -> np.ndarray:
    """Returns what a model answers to `noise_images`."""
    return keras.ops.convert_to_numpy(model(noise_images(model.input_shape[1]), training=False))


def check_old_tasks_stay(method: type[Method], backbone: Backbone, file: Path, **settings: object) -> Memory:
    """Learns three tasks and compares their answers bit for bit, each from the saved memory and after each task.

    Args:
        method: The method, which is told what was learned before.
        backbone: The base.
        file: Where the memory is saved.
        **settings: Those of the method.

    Returns:
        The memory of all three.
    """
    config, memory, first = method.Config(**settings), Memory(), {}
    for number, task in enumerate(("one", "two", "three")):
        memory, trained = learn(method(config, memory), backbone, task, file, "sgd" if number == 1 else "adam")
        for old in memory.tasks:
            found = answers(method(config, memory).recall(backbone, old))
            assert np.array_equal(found, first.setdefault(old, found)), f"{old} changed after {task}"
        np.testing.assert_allclose(first[task], trained, rtol=1e-5, atol=1e-5)
    assert len({found.tobytes() for found in first.values()}) == 3
    return memory


def learn_second(method: Method, data: TaskData, train: TrainConfig) -> Memory:
    """Learns a second task on the toy network."""
    return train_and_remember(method, toy_backbone(), "second", data, train)


def check_same_as_finetuning(method: Method, data: TaskData, train: TrainConfig) -> Memory:
    """Learns a second task, to the same bits as fine-tuning in sequence does.

    Args:
        method: With its memory of a task on the toy network.
        data: The second task.
        train: How it is trained.

    Returns:
        The memory of both tasks.
    """
    plain = METHODS["finetune_sequential"]
    assert method.Config.recipe == plain.Config.recipe
    found, expected = (learn_second(one, data, train) for one in (method, plain(None, method.memory)))
    assert expected.shared.keys() == found.shared.keys()
    for path in expected.shared:
        assert np.array_equal(expected.shared[path], found.shared[path]), path
    assert any((expected.shared[path] != method.memory.shared[path]).any() for path in expected.shared)
    for task in expected.tasks:
        assert expected.of(task).keys() == found.of(task).keys()
        for path, array in expected.of(task).items():
            assert np.array_equal(array, found.of(task)[path]), (task, path)
    return found


def check_drift_falls(methods: Sequence[Method], data: TaskData, train: TrainConfig) -> None:
    """Learns a second task with a penalty of several weights, of which a higher one holds the network more.

    Args:
        methods: With rising weights, and the same memory of a task on the toy network, of importances by path.
        data: The second task.
        train: How it is trained.
    """
    drifts, weighted, first = [], [], methods[0].memory
    for method in methods:
        found = learn_second(method, data, train).shared
        moved = {path: np.square(found[path] - first.shared[path]) for path in found}
        drifts.append(sum(float(square.sum()) for square in moved.values()))
        weighted.append(sum(float((first.learning[path] * moved[path]).sum()) for path in first.learning))
    for name, values in (("drifts", drifts), ("weighted", weighted)):
        assert all(one > two > 0 for one, two in itertools.pairwise(values)), (name, values)
