"""Elastic weight consolidation: its Fisher information, its penalty, and what they do."""

import dataclasses

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.ewc import EWC, EWCConfig
from piggyback_tf.methods.parts.importance import sample_images
from piggyback_tf.training import TrainConfig
from tests.methods.real_training import train_and_remember
from tests.methods.toy import toy_backbone, toy_tasks

CONFIG = TrainConfig(epochs=4, batch_size=10, chance_epochs=0, warmup_steps=0, weights_lr=1e-3, head_lr=1e-2)


@pytest.fixture(scope="module", name="first")
def _first() -> Memory:
    return train_and_remember(EWC(), toy_backbone(), "stripes", toy_tasks()["stripes"], CONFIG)


def _second(method: str, memory: Memory, config=None) -> Memory:
    return train_and_remember(METHODS[method](config, memory), toy_backbone(), "spots", toy_tasks()["spots"], CONFIG)


@pytest.fixture(scope="module", name="unheld")
def _unheld(first) -> Memory:
    return _second("ewc", first, EWCConfig(ewc_lambda=0.0))


def test_lambda_0_is_finetuning_in_sequence(first, unheld):
    assert METHODS["ewc"].Config.recipe == METHODS["finetune_sequential"].Config.recipe
    one, two = unheld, _second("finetune_sequential", first)
    assert one.shared.keys() == two.shared.keys()
    for path in one.shared:
        assert np.array_equal(one.shared[path], two.shared[path]), path
    for task in one.tasks:
        assert all(np.array_equal(one.of(task)[name], two.of(task)[name]) for name in one.of(task))


@pytest.mark.slow
def test_drift_falls_with_lambda(first, unheld):
    drifts, weighted = [], []
    held = (_second("ewc", first, EWCConfig(ewc_lambda=strength, ewc_fisher_images=1)) for strength in (1e2, 1e4, 1e6))
    for found in (unheld, *held):
        moved = {path: np.square(found.shared[path] - first.shared[path]) for path in found.shared}
        drifts.append(sum(float(square.sum()) for square in moved.values()))
        fisher = {path: first.learning.get(f"0/fisher/{path}", np.float32(0)) for path in moved}
        weighted.append(sum(float((fisher[path] * moved[path]).sum()) for path in moved))
    assert all(one > two > 0 for one, two in zip(drifts, drifts[1:], strict=False)), drifts
    assert all(one > two > 0 for one, two in zip(weighted, weighted[1:], strict=False)), weighted


def test_fisher_is_the_mean_square_of_single_images_gradients():
    """Against formulas for images x, features f = norm(x W + b) with batch norm in inference mode, logits f V + c."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((2, 2, 3))
    x = keras.layers.Dense(4, name="fc")(keras.layers.Flatten(name="flat")(inputs))
    backbone = Backbone.from_model(keras.Model(inputs, keras.layers.BatchNormalization(name="norm")(x)), "tiny")
    # Batch norm that is trained takes the batch's statistics, except in inference mode.
    method = EWC(EWCConfig(ewc_fisher_images=0, norm="task"))
    model = method.build(backbone, 3)
    for variable in model.weights:
        value = rng.uniform(0.5, 1.5, variable.shape) if "norm" in variable.path else rng.normal(size=variable.shape)
        variable.assign(value.astype(np.float32) * (0.1 if variable.name == "kernel" else 1.0))
    images, labels = rng.normal(size=(7, 2, 2, 3)).astype(np.float32), rng.integers(0, 3, 7)
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    memory = method.remember(model, backbone, "t", batches)

    fc, norm, head = (model.get_layer(name) for name in ("fc", "norm", "head"))
    deviation = np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
    squares = {"fc/kernel": [], "fc/bias": [], "norm/gamma": [], "norm/beta": []}
    for image, label in zip(images, labels, strict=True):
        flat = image.reshape(-1)
        normed = (flat @ fc.kernel.numpy() + fc.bias.numpy() - norm.moving_mean.numpy()) / deviation
        logits = (normed * norm.gamma.numpy() + norm.beta.numpy()) @ head.kernel.numpy() + head.bias.numpy()
        by_features = head.kernel.numpy() @ (np.eye(3)[label] - np.exp(logits) / np.exp(logits).sum())
        by_fc = by_features * norm.gamma.numpy() / deviation
        squares["fc/kernel"].append(np.outer(flat, by_fc) ** 2)
        squares["fc/bias"].append(by_fc**2)
        squares["norm/gamma"].append((by_features * normed) ** 2)
        squares["norm/beta"].append(by_features**2)
    assert memory.learning.keys() == {f"0/{part}/{path}" for part in ("fisher", "weights") for path in squares}
    for path, found in squares.items():
        np.testing.assert_allclose(memory.learning[f"0/fisher/{path}"], np.mean(found, axis=0), rtol=1e-4, atol=1e-8)
        assert np.array_equal(memory.learning[f"0/weights/{path}"], memory.shared[path])


@pytest.mark.parametrize("online", [False, True])
def test_the_penalty_of_two_earlier_tasks(online):
    # With a head of zeros no weight matters.
    config = EWCConfig(ewc_lambda=10.0, ewc_online=online, ewc_decay=0.5, ewc_fisher_images=0, head_init="glorot")
    backbone, rng = toy_backbone(), np.random.default_rng(0)
    memory, weights, fishers = Memory(), [], []
    for task in ("one", "two"):
        method = EWC(config, memory)
        model = method.build(backbone, 2)
        for layer in ("first_conv", "dense"):
            kernel = model.get_layer(layer).kernel
            kernel.assign(kernel + rng.normal(scale=0.1, size=kernel.shape).astype(np.float32))
        batch = rng.uniform(0, 255, (5, 12, 12, 3)).astype(np.float32), np.array([0, 1, 0, 1, 1])
        memory = method.remember(model, backbone, task, [batch])
        alone = EWC(config).remember(model, backbone, task, [batch]).learning
        fishers.append({path[9:]: value for path, value in alone.items() if path.startswith("0/fisher/")})
        weights.append(dict(memory.shared))
    assert max(float(fishers[0][path].max()) for path in fishers[0]) > 0
    model = EWC(config, memory).build(backbone, 2)
    model.get_layer("dense").kernel.assign(model.get_layer("dense").kernel + 0.1)
    now = {**weights[1], "dense/kernel": weights[1]["dense/kernel"] + np.float32(0.1)}

    def penalty(fisher, old):
        return 5.0 * sum(float((fisher[path] * np.square(now[path] - old[path])).sum()) for path in fisher)

    if online:
        both = {path: 0.5 * fishers[0][path] + fishers[1][path] for path in fishers[0]}
        expected = penalty(both, weights[1])
    else:
        expected = penalty(fishers[0], weights[0]) + penalty(fishers[1], weights[1])
    np.testing.assert_allclose(float(model.added_loss(None, None)), expected, rtol=1e-4)
    assert len(memory.learning) == 2 * len(fishers[0]) * (1 if online else 2)
    # It is part of the loss in training, and of no other.
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    logits, labels = np.zeros((2, 2), np.float32), np.array([0, 1])
    np.testing.assert_allclose(model.compute_loss(None, labels, logits), np.log(2) + expected, rtol=1e-4)
    np.testing.assert_allclose(model.compute_loss(None, labels, logits, training=False), np.log(2), rtol=1e-4)


def test_trained_batch_norm_is_held_and_its_statistics_are_not():
    method = EWC(EWCConfig(norm="task"))
    model = method.build(toy_backbone(), 2)
    batch = np.zeros((2, 12, 12, 3), np.float32), np.array([0, 1])
    memory = method.remember(model, toy_backbone(), "t", [batch])
    assert {"0/fisher/first_norm/gamma", "0/fisher/first_norm/beta"} <= memory.learning.keys()
    assert not [path for path in memory.learning if "moving" in path or "head" in path]
    with pytest.raises(ValueError, match=r"does not fit the settings: '0/fisher/first_norm/beta'.*--norm"):
        EWC(EWCConfig(norm="frozen"), memory).build(toy_backbone(), 2)


def test_images_are_sampled_from_all_batches():
    batches = [(np.arange(start, start + 4)[:, None], np.arange(start, start + 4)) for start in range(0, 20, 4)]
    one, two = ([int(label) for _, label in sample_images(batches, 6)] for _ in range(2))
    assert one == two
    assert len(set(one)) == 6 and max(one) > 10
    assert all(int(image[0]) == label for image, label in sample_images(batches, 6))
    for count in (0, 20, 30):
        assert [int(label) for _, label in sample_images(batches, count)] == list(range(20))
    # Each image is as likely as any other.
    many = [(np.zeros((1000, 1)), np.arange(1000))]
    assert 400 < np.mean([label for _, label in sample_images(many, 200)]) < 600


@pytest.mark.parametrize(
    ("field", "value", "valid"),
    [
        ("ewc_lambda", -1.0, "not be negative"),
        ("ewc_fisher_images", -1, "an integer of at least 0"),
        ("ewc_decay", 1.5, r"in \[0, 1\]"),
    ],
)
def test_settings_out_of_range_are_refused(field, value, valid):
    with pytest.raises(ValueError, match=f"`?{field}`? must.*{valid}.*{field}={value}"):
        dataclasses.replace(EWCConfig(), **{field: value})


def test_no_images_no_fisher():
    with pytest.raises(ValueError, match="no images"):
        EWC().remember(EWC().build(toy_backbone(), 2), toy_backbone(), "t", [])
