"""Schedules, groups of variables, and the limit on flips."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import FlipLimitedAdam, TrainConfig, WarmupSchedule, make_optimizer


def _variable(values):
    return keras.Variable(np.asarray(values, "float32"), name="mask_real")


def test_cosine_schedule_with_warmup():
    rate = WarmupSchedule(0.5, "cosine", total_steps=100, warmup_steps=10)
    assert float(rate(0)) == pytest.approx(0.05)
    assert float(rate(9)) == pytest.approx(0.5 * (1 + np.cos(np.pi * 0.09)) / 2)
    assert float(rate(50)) == pytest.approx(0.25)
    assert float(rate(100)) == pytest.approx(0, abs=1e-9)


def test_step_schedule_is_the_papers():
    rate = WarmupSchedule(1e-4, "step", total_steps=300, step_length=150, step_decay=0.1)
    np.testing.assert_allclose([float(rate(step)) for step in (0, 149, 150, 299)], [1e-4, 1e-4, 1e-5, 1e-5], rtol=1e-5)


def test_constant_schedule_and_config_round_trip():
    rate = WarmupSchedule(0.2, "constant", total_steps=10)
    assert float(rate(7)) == pytest.approx(0.2)
    assert WarmupSchedule.from_config(rate.get_config()).get_config() == rate.get_config()


def test_steps_within_the_limit_are_adams_bit_for_bit():
    generator = np.random.default_rng(0)
    one, two = _variable(np.full(1000, 1e-2)), _variable(np.full(1000, 1e-2))
    limited, adam = FlipLimitedAdam(1e-4, max_flips=1e-3), keras.optimizers.Adam(1e-4)
    for _ in range(20):
        gradient = generator.normal(size=1000).astype("float32")
        limited.apply([gradient], [one])
        adam.apply([gradient], [two])
    assert np.array_equal(one, two)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
@pytest.mark.parametrize("size", [1000, 200_000])
def test_a_step_that_would_flip_half_of_the_mask_flips_no_more_than_the_limit(kind, size):
    distance = np.random.default_rng(0).uniform(0, 2e-3, size).astype("float32")
    mask = _variable(5e-3 + distance)
    optimizer = FlipLimitedAdam(1e-3, max_flips=0.01, threshold=5e-3, kind=kind)
    optimizer.apply([np.ones(size, "float32")], [mask])
    flipped = np.mean(mask.numpy() < 5e-3)
    assert 0.005 < flipped < 0.015
    free = _variable(5e-3 + distance)
    keras.optimizers.Adam(1e-3).apply([np.ones(size, "float32")], [free])
    assert 0.45 < np.mean(free.numpy() < 5e-3) < 0.55


def test_flips_back_are_limited_too():
    mask = _variable(np.random.default_rng(0).uniform(4e-3, 5e-3, 1000))
    FlipLimitedAdam(1e-3, max_flips=0.01).apply([-np.ones(1000, "float32")], [mask])
    assert np.mean(mask.numpy() >= 5e-3) < 0.015


def test_the_limit_can_follow_a_schedule():
    distance = np.random.default_rng(0).uniform(0, 2e-3, 10_000).astype("float32")
    limit = WarmupSchedule(0.1, "step", total_steps=2, step_length=1, step_decay=0.1)
    optimizer, flipped = FlipLimitedAdam(1e-3, max_flips=limit), []
    mask = _variable(5e-3 + distance)
    for _ in range(2):
        optimizer.apply([np.ones(10_000, "float32")], [mask])
        flipped.append(np.mean(mask.numpy() < 5e-3))
    assert 0.08 < flipped[0] < 0.12
    assert 0.008 < flipped[1] - flipped[0] < 0.012
    copy = FlipLimitedAdam.from_config(optimizer.get_config())
    assert copy.max_flips.get_config() == limit.get_config()


@pytest.mark.parametrize("max_flips", [0.0, WarmupSchedule(1e-3, "cosine", total_steps=20_000)])
def test_a_limit_of_zero_is_no_number_to_divide_by(max_flips):
    rate = WarmupSchedule(4e-4, "cosine", total_steps=20_000)
    optimizer = FlipLimitedAdam(rate, max_flips=max_flips)
    mask = _variable(np.full(100, 6e-3))
    optimizer.build([mask])
    # In float32 the cosine of the last step is exactly 0.
    optimizer.iterations.assign(19_999)
    optimizer.apply([np.ones(100, "float32")], [mask])
    assert np.isfinite(mask.numpy()).all()
    assert (mask.numpy() >= 5e-3).all()


def test_amsgrad_is_refused():
    with pytest.raises(ValueError, match="AMSGrad"):
        FlipLimitedAdam(amsgrad=True)


def _backbone():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3)(inputs)
    x = keras.layers.BatchNormalization()(x)
    return Backbone.from_model(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x)), "tiny")


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("classifier_only", {"head": 2}),
        ("piggyback", {"mask": 1, "head": 2}),
        ("finetune", {"weights": 2, "head": 2}),
    ],
)
def test_each_group_has_its_optimiser(method, groups):
    method = METHODS[method]()
    model = method.build(_backbone(), 3)
    assert {name: len(members) for name, members in method.groups(model).items()} == groups
    optimizer = make_optimizer(method, model, TrainConfig(mask_lr=0.1, head_lr=0.2, weights_lr=0.3), 10)
    optimizer.build(model.trainable_variables)
    peaks = sorted(inner._learning_rate.peak for inner in optimizer.optimizers)
    assert peaks == sorted({"mask": 0.1, "head": 0.2, "weights": 0.3}[name] for name in groups)


@pytest.mark.parametrize("epochs, warmup", [(2, 7), (10, 30)])
def test_a_warmup_leaves_most_of_a_short_training(epochs, warmup):
    method = METHODS["piggyback"]()
    model = method.build(_backbone(), 3)
    optimizer = make_optimizer(method, model, TrainConfig(epochs=epochs, warmup_steps=30), 10)
    optimizer.build(model.trainable_variables)
    assert {inner._learning_rate.warmup_steps for inner in optimizer.optimizers} == {0, warmup}


def test_norm_per_task_is_a_group_and_the_head_has_no_warmup():
    method = Piggyback(PiggybackConfig(norm="task"))
    model = method.build(_backbone(), 3)
    assert set(method.groups(model)) == {"mask", "norm", "head"}
    optimizer = make_optimizer(method, model, TrainConfig(warmup_steps=7, norm_optimizer="sgd"), 10)
    optimizer.build(model.trainable_variables)
    warmups = {type(inner).__name__: inner._learning_rate.warmup_steps for inner in optimizer.optimizers}
    assert warmups == {"FlipLimitedAdam": 7, "SGD": 7, "Adam": 0}


def test_the_papers_recipe_is_plain_adam():
    method = Piggyback()
    model = method.build(_backbone(), 3)
    config = TrainConfig(max_flips=0, warmup_steps=0, schedule="step", mask_lr=1e-4, mask_epsilon=1e-8, head_lr=1e-4)
    optimizer = make_optimizer(method, model, config, 10)
    optimizer.build(model.trainable_variables)
    assert {type(inner) for inner in optimizer.optimizers} == {keras.optimizers.Adam}
    assert sorted(inner.epsilon for inner in optimizer.optimizers) == [1e-8, 1e-7], "masks have an epsilon of their own"


def test_limiting_flips_needs_adam():
    method = Piggyback()
    with pytest.raises(ValueError, match="max_flips to 0"):
        make_optimizer(method, method.build(_backbone(), 3), TrainConfig(mask_optimizer="sgd"), 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"mask_lr": 0.0}, "mask_lr"),
        ({"mask_lr": float("nan")}, "mask_lr"),
        ({"schedule": "linear"}, "cosine, step, constant"),
        ({"head_optimizer": "lamb"}, "adam, sgd"),
        ({"max_flips": -1.0}, "max_flips"),
        ({"sgd_momentum": 1.0}, "sgd_momentum"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)
