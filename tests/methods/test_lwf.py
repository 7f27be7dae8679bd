"""Learning without Forgetting: old heads keep the answers of the network of before."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.lwf import LwF, LwFConfig
from piggyback_tf.training import TrainConfig
from tests.methods.real_training import digits_task, error_of, train_and_remember
from tests.methods.toy import SIZE, toy_backbone

IMAGES = np.random.default_rng(0).uniform(0, 255, (5, SIZE, SIZE, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 0, 1])


@pytest.fixture(name="memory")
def _memory() -> Memory:
    """Two tasks of 2 and 3 classes, whose heads say something."""
    rng, memory = np.random.default_rng(1), Memory()
    for task, classes in (("a", 2), ("b", 3)):
        method = METHODS["finetune_sequential"](None, memory)
        model = method.build(toy_backbone(), classes)
        model.get_layer("head").kernel.assign(rng.normal(size=(10, classes)).astype(np.float32))
        memory = method.remember(model, toy_backbone(), task, [])
    return memory


def _build(memory, **settings):
    method = LwF(LwFConfig(head_init="glorot", **settings), memory)
    model = method.build(toy_backbone(), 3, seed=3)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    return method, model


@pytest.mark.slow
def test_forgets_less_than_finetuning_in_sequence():
    backbone, old, new = load_backbone("shapesnet"), digits_task(0, 4, 200), digits_task(5, 9, 200)
    config = TrainConfig(epochs=4, chance_epochs=0, warmup_steps=3, weights_lr=3e-3, head_lr=1e-2)
    memory = train_and_remember(METHODS["finetune_sequential"](), backbone, "old", old, config)
    start = error_of(LwF(None, memory).recall(backbone, "old"), old)
    errors = {}
    for name in ("finetune_sequential", "lwf"):
        learned = train_and_remember(METHODS[name](None, memory), backbone, "new", new, config)
        method = METHODS[name](None, learned)
        errors[name] = {
            task: error_of(method.recall(backbone, task), data) for task, data in (("old", old), ("new", new))
        }
    forgotten = {name: found["old"] - start for name, found in errors.items()}
    assert forgotten["finetune_sequential"] > 5
    assert forgotten["lwf"] < 0.67 * forgotten["finetune_sequential"], forgotten
    # Not by learning less.
    assert errors["lwf"]["new"] < errors["finetune_sequential"]["new"] + 5 < 25, errors


def test_the_network_of_before_holds_the_old_heads(memory):
    _, model = _build(memory, lwf_temperature=4.0, lwf_weight=0.7)
    start = model(IMAGES, training=True).numpy()
    for task, own in (("a", slice(3, 5)), ("b", slice(5, 8))):
        expected = LwF(None, memory).recall(toy_backbone(), task)(IMAGES, training=False)
        np.testing.assert_allclose(start[:, own], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.added_loss.record(IMAGES), start[:, 3:], rtol=1e-5, atol=1e-6)
    new = float(model.compute_loss(IMAGES, LABELS, start, training=False))
    np.testing.assert_allclose(model.compute_loss(IMAGES, LABELS, start), new, rtol=1e-5)

    kernel = model.get_layer("dense").kernel
    kernel.assign(kernel + np.random.default_rng(2).normal(size=kernel.shape).astype(np.float32))
    moved = model(IMAGES, training=True).numpy()
    np.testing.assert_allclose(model.added_loss.record(IMAGES), start[:, 3:], rtol=1e-5, atol=1e-6)
    divergence = 0.0
    for own in (slice(3, 5), slice(5, 8)):
        p, q = (np.exp(logits[:, own] / 4.0) for logits in (start.astype(float), moved.astype(float)))
        p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
        divergence += np.mean(np.sum(p * np.log(p / q), axis=1))
    assert divergence > 1e-3
    new = float(model.compute_loss(IMAGES, LABELS, moved, training=False))
    np.testing.assert_allclose(model.compute_loss(IMAGES, LABELS, moved), new + 0.7 * divergence, rtol=1e-4)


def test_outside_of_training_the_model_answers_for_the_new_task(memory):
    _, model = _build(memory)
    logits = model(IMAGES, training=False).numpy()
    assert logits.shape == (5, 3)
    model.jit_compile = False
    assert np.array_equal(model.predict(IMAGES, verbose=0).shape, (5, 3))
    np.testing.assert_allclose(model(IMAGES, training=True)[:, :3], logits, rtol=1e-5, atol=1e-6)


def test_the_copy_is_no_part_of_the_training_state(memory):
    _, model = _build(memory)
    own = METHODS["finetune_sequential"](None, memory).build(toy_backbone(), 3)
    assert len(model.variables) == len(own.variables) + 2
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == (
        sum(np.prod(v.shape) for v in own.trainable_variables) + 10 * 5 + 5
    )


@pytest.mark.parametrize("norm", ["frozen", "task"])
def test_warm_up_trains_the_new_head_alone(memory, norm):
    method, model = _build(memory, norm=norm)
    everything = [variable.path for variable in model.trainable_variables]
    method.begin_phase(model, 0)
    assert {name: len(members) for name, members in method.groups(model).items()} == {"head": 2}
    before = model.get_layer("first_norm").moving_mean.numpy()
    model(IMAGES, training=True)
    assert np.array_equal(model.get_layer("first_norm").moving_mean, before)
    method.begin_phase(model, 1)
    assert [variable.path for variable in model.trainable_variables] == everything
    groups = {name: len(members) for name, members in method.groups(model).items()}
    # Three kernels of convolutions, a bias and the dense layer; the old heads learn as slowly as the network.
    assert groups == {"head": 2, "weights": 6 + 2} | ({"norm": 4} if norm == "task" else {})


def test_phases():
    assert LwF().phases(10) == (2, 8)
    assert LwF().phases(2) == (1, 1)
    assert LwF(LwFConfig(lwf_warmup=0.5)).phases(10) == (5, 5)
    assert LwF(LwFConfig(lwf_warmup=0.0)).phases(1) == (1,)
    with pytest.raises(ValueError, match="epoch of warm-up and one after it.*epochs=1.*lwf_warmup=0"):
        LwF().phases(1)


def test_without_warm_up_everything_learns_at_once(memory):
    method, model = _build(memory, lwf_warmup=0.0)
    method.begin_phase(model, 0)
    assert method.groups(model).keys() == {"head", "weights"}


def test_old_heads_are_trained_and_remembered(memory):
    method, model = _build(memory)
    for name in ("old_heads", "head"):
        layer = model.get_layer(name)
        layer.bias.assign(np.arange(layer.units, dtype=np.float32))
    learned = method.remember(model, toy_backbone(), "c", [])
    assert learned.tasks == ("a", "b", "c")
    logits = model(IMAGES, training=True).numpy()
    for task, own in (("a", slice(3, 5)), ("b", slice(5, 8)), ("c", slice(0, 3))):
        expected = LwF(None, learned).recall(toy_backbone(), task)(IMAGES, training=False)
        np.testing.assert_allclose(logits[:, own], expected, rtol=1e-5, atol=1e-6)
    assert learned.of("b")["head/bias"].tolist() == [2, 3, 4]
    assert memory.of("b")["head/bias"].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="'z' was not learned"):
        learned.with_changed({"z": {}})


@pytest.mark.parametrize("setting", [{"lwf_temperature": 0.0}, {"lwf_weight": -1.0}, {"lwf_warmup": 1.0}])
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"`{name}` must.*{name}={value}"):
        LwFConfig(**setting)
