"""Synaptic intelligence: what its steps gather, and what that holds."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.si import GATHERED_NAME, SI, SIConfig
from piggyback_tf.training import TrainConfig, train_task
from piggyback_tf.training.backup import BackupAndRestore
from tests.methods.learning import check_drift_falls, check_same_as_finetuning
from tests.methods.toy import CLASSES, INPUTS, SIZE, toy_backbone, toy_tasks

CONFIG = TrainConfig(epochs=2, batch_size=10, chance_epochs=0, warmup_steps=0, weights_lr=1e-3, head_lr=1e-2)
IMAGES = np.random.default_rng(0).uniform(0, 255, (6, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module", name="first")
def _first() -> Memory:
    """A task of which each weight has gathered something, on a way of its own."""
    method, rng = SI(), np.random.default_rng(5)
    model = method.build(toy_backbone(), CLASSES["stripes"])
    for variable in model.trainable_variables:
        variable.assign_add(rng.normal(scale=0.01, size=variable.shape))
    for total in model.get_layer(GATHERED_NAME).omega.values():
        total.assign(rng.uniform(0, 1e-3, total.shape))
    return method.remember(model, toy_backbone(), "stripes", [])


def _omega(model):
    return {path: total.numpy() for path, total in model.get_layer(GATHERED_NAME).omega.items()}


def _compiled(method, optimizer):
    model = method.build(toy_backbone(), 3, seed=1)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return model


def test_steps_gather_the_labels_gradient_times_the_step_that_was_taken(first):
    """With an optimiser whose steps are not along the gradient, and a penalty, which is not gathered."""
    method = SI(SIConfig(si_strength=50.0, head_init="glorot"), first)
    model = _compiled(method, keras.optimizers.Adam(1e-2))
    expected = {path: np.zeros_like(total) for path, total in _omega(model).items()}
    variables = {path: model.get_layer(path.split("/")[0]).variables for path in expected}
    variables = {path: next(v for v in found if v.name == path.split("/")[1]) for path, found in variables.items()}
    assert variables.keys() == first.learning.keys() and "head/kernel" not in variables
    for _ in range(3):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(LABELS, model(IMAGES, training=True)))
        gradients = dict(zip(variables, tape.gradient(loss, [v.value for v in variables.values()]), strict=True))
        before = {path: variable.numpy() for path, variable in variables.items()}
        model.train_on_batch(IMAGES, LABELS)
        for path, variable in variables.items():
            expected[path] -= gradients[path].numpy() * (variable.numpy() - before[path])
    for path, found in _omega(model).items():
        np.testing.assert_allclose(found, expected[path], rtol=1e-3, atol=1e-6, err_msg=path)
    # Together they are about what the loss fell by, and not what it fell by with the penalty.
    assert sum(float(total.sum()) for total in expected.values()) > 0


@pytest.mark.slow
def test_the_scale_of_losses_in_half_precision_is_not_gathered(first):
    found = []
    for optimizer in (
        keras.optimizers.SGD(0.1),
        # The scale doubles after each second step.
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0, dynamic_growth_steps=2),
    ):
        model = _compiled(SI(SIConfig(si_strength=50.0, head_init="glorot"), first), optimizer)
        for _ in range(3):
            model.train_on_batch(IMAGES, LABELS)
        found.append(_omega(model))
    for path in found[0]:
        assert np.any(found[0][path] != 0)
        np.testing.assert_allclose(found[1][path], found[0][path], rtol=1e-3, atol=1e-6, err_msg=path)


def test_importance_is_what_the_paper_says_and_is_summed():
    config, memory, expected = SIConfig(si_damping=0.5), Memory(), 0.0
    start = toy_backbone().model.get_layer("dense").kernel.numpy()
    rng = np.random.default_rng(3)
    for task, sign in (("one", 1.0), ("two", -1.0)):
        method = SI(config, memory)
        model = method.build(toy_backbone(), 2)
        omega = np.float32(sign) * rng.uniform(0, 1, start.shape).astype(np.float32)
        way = rng.normal(size=start.shape).astype(np.float32)
        model.get_layer(GATHERED_NAME).omega["dense/kernel"].assign(omega)
        model.get_layer("dense").kernel.assign(start + way)
        memory = method.remember(model, toy_backbone(), task, [])
        expected = np.maximum(0, expected + omega / (way**2 + 0.5))
        np.testing.assert_allclose(memory.learning["dense/kernel"], expected, rtol=1e-4, atol=1e-6)
        start = start + way
    # What would reward a weight for moving is 0.
    assert (expected == 0).any() and (expected > 0).any()
    assert all((array >= 0).all() for array in memory.learning.values())


@pytest.mark.slow
def test_the_best_epoch_has_its_own(monkeypatch):
    """Where a training gets worse, what is gathered is that of the epoch whose weights are kept."""
    seen, end_epoch = [], BackupAndRestore.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        seen.append(_omega(self.model)["dense/kernel"])
        end_epoch(self, epoch, {**logs, "val_error": (0.5, 0.1, 0.9)[epoch]})

    monkeypatch.setattr(BackupAndRestore, "on_epoch_end", on_epoch_end)
    config = dataclasses.replace(CONFIG, epochs=3)
    trained = train_task(SI(), toy_backbone(), toy_tasks()["spots"], config, INPUTS)
    assert trained.best_epoch == 1
    assert np.array_equal(_omega(trained.model)["dense/kernel"], seen[1])
    assert not any(np.array_equal(seen[1], other) for other in (seen[0], seen[2]))


@pytest.mark.slow
def test_weight_0_is_finetuning_in_sequence(first):
    check_same_as_finetuning(SI(SIConfig(si_strength=0.0), first), toy_tasks()["spots"], CONFIG)


@pytest.mark.slow
def test_drift_falls_with_the_weight(first):
    methods = [SI(SIConfig(si_strength=weight), first) for weight in (0.0, 1e0, 1e1, 1e2)]
    check_drift_falls(methods, toy_tasks()["spots"], CONFIG)


def test_other_batch_norm_than_for_the_first_task_is_refused(first):
    with pytest.raises(ValueError, match=r"does not fit the settings: 'first_norm/beta' is in one.*Keep --norm as"):
        SI(SIConfig(norm="task"), first).build(toy_backbone(), 3)


def test_it_is_known_and_recalled_without_what_was_gathered(first):
    network = METHODS["si"](None, first).recall(toy_backbone(), "stripes")
    assert network(IMAGES).shape == (6, CLASSES["stripes"])
    assert GATHERED_NAME not in [layer.name for layer in network.layers]
    assert not [path for path in first.shared if GATHERED_NAME in path]


@pytest.mark.parametrize(("name", "value", "valid"), [("si_strength", -1.0, "negative"), ("si_damping", 0.0, "above")])
def test_settings_out_of_range_are_refused(name, value, valid):
    with pytest.raises(ValueError, match=f"`{name}` must .*{valid}.*{name}={value}"):
        SIConfig(**{name: value})
