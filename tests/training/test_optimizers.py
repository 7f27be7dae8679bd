"""Groups of variables, and the optimiser of each."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.problems import PROBLEMS
from piggyback_tf.training import TrainConfig, TrustRegionAdam, make_optimizer
from piggyback_tf.training.schedules import HEAD_RATE, head_rate


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


@pytest.mark.parametrize(
    ("shapes", "rate"),
    [
        ({"head/kernel": (1280, 10), "head/bias": (10,)}, 1e-3),
        ({"head/kernel": (2048, 10), "head/bias": (10,)}, 1e-3),
        ({"head/kernel": (64, 3), "head/bias": (3,)}, 2e-2),
        ({"head/kernel": (4, 3), "head/bias": (3,)}, 4e-2),
        ({"a/kernel": (640, 3), "a/bias": (3,), "b/kernel": (640, 5), "b/bias": (5,)}, 2e-3),  # Heads of two tasks.
        # A layer that batch norm follows has no bias.
        ({"lateral/kernel": (1, 1, 960, 32), "logits/kernel": (1, 1, 32, 11), "logits/bias": (11,)}, 4e-2),
        ({"a/kernel": (1, 1, 4096, 11), "a/bias": (11,), "b/kernel": (1, 1, 256, 11), "b/bias": (11,)}, 1e-3),
        ({"logits/kernel": (3, 3, 64, 11), "logits/bias": (11,)}, 1e-3 * 1280 / 576),
        ({"head/bias": (3,)}, 1e-3),
    ],
)
def test_the_fewer_the_features_the_higher_the_rate_of_the_head(shapes, rate):
    assert head_rate(shapes) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("given", "peak"), [({}, 0.04), ({"head_lr": 1e-3}, 1e-3), ({"head_optimizer": "sgd"}, HEAD_RATE)]
)
def test_a_rate_that_is_given_is_the_heads(given, peak):
    method = METHODS["classifier_only"]()
    model = method.build(_backbone(), 3)
    optimizer = make_optimizer(method, model, TrainConfig(**given), 10)
    optimizer.build(model.trainable_variables)
    (head,) = optimizer.optimizers
    assert head._learning_rate.peak == pytest.approx(peak)


def test_a_saved_model_is_loaded_without_its_optimiser(tmp_path):
    method = METHODS["piggyback"]()
    model = method.build(_backbone(), 3)
    model.compile(make_optimizer(method, model, TrainConfig(), 10), "sparse_categorical_crossentropy")
    model.save(tmp_path / "whole.keras")
    with pytest.raises(ValueError, match=r"load_model\(path, compile=False\).*make_optimizer"):
        keras.models.load_model(tmp_path / "whole.keras")
    loaded = keras.models.load_model(tmp_path / "whole.keras", compile=False)
    images = np.linspace(0, 255, 192, dtype=np.float32).reshape(1, 8, 8, 3)
    np.testing.assert_array_equal(loaded(images), model(images))


@pytest.mark.parametrize("asked, epochs, warmup", [(30, 2, 7), (30, 10, 30), (-1, 10, 10), (-1, 3, 3)])
def test_a_warmup_leaves_most_of_a_short_training(asked, epochs, warmup):
    method = METHODS["piggyback"]()
    model = method.build(_backbone(), 3)
    optimizer = make_optimizer(method, model, TrainConfig(epochs=epochs, warmup_steps=asked), 10)
    optimizer.build(model.trainable_variables)
    assert {inner._learning_rate.warmup_steps for inner in optimizer.optimizers} == {0, warmup}


def test_norm_per_task_is_a_group_and_the_head_has_no_warmup():
    method = Piggyback(PiggybackConfig(norm="task"))
    model = method.build(_backbone(), 3)
    assert set(method.groups(model)) == {"mask", "norm", "head"}
    optimizer = make_optimizer(method, model, TrainConfig(warmup_steps=7, norm_optimizer="sgd"), 10)
    optimizer.build(model.trainable_variables)
    warmups = {type(inner).__name__: inner._learning_rate.warmup_steps for inner in optimizer.optimizers}
    assert warmups == {"TrustRegionAdam": 7, "SGD": 7, "Adam": 0}


def test_the_papers_recipe_is_plain_adam():
    method = Piggyback()
    model = method.build(_backbone(), 3)
    config = TrainConfig(mask_trust=0, warmup_steps=0, schedule="step", mask_lr=1e-4, mask_epsilon=1e-8, head_lr=1e-4)
    optimizer = make_optimizer(method, model, config, 10)
    optimizer.build(model.trainable_variables)
    assert {type(inner) for inner in optimizer.optimizers} == {keras.optimizers.Adam}
    assert sorted(inner.epsilon for inner in optimizer.optimizers) == [1e-8, 1e-7], "masks have an epsilon of their own"


def test_limiting_flips_needs_adam():
    method = Piggyback()
    model = method.build(_backbone(), 3)
    with pytest.raises(ValueError, match="mask_trust to 0"):
        make_optimizer(method, model, TrainConfig(mask_optimizer="sgd", mask_lr=1.0), 10)
    with pytest.raises(ValueError, match="set mask_lr"):
        make_optimizer(method, model, TrainConfig(mask_optimizer="sgd", mask_trust=0.0), 10)


def test_one_device_sends_no_gradients():
    method = Piggyback()
    model = method.build(_backbone(), 3)
    with pytest.raises(ValueError, match="mask_gradients='bfloat16' is for several machines"):
        make_optimizer(method, model, TrainConfig(mask_gradients="bfloat16"), 10)


@pytest.mark.parametrize("epochs", [1, 4, 100])
def test_in_a_training_of_any_length_a_steady_gradient_comes_to_the_threshold_as_often(epochs):
    method = Piggyback()
    model = method.build(_backbone(), 3)
    optimizer = make_optimizer(method, model, TrainConfig(epochs=epochs), 10)
    optimizer.build(model.trainable_variables)
    (masks,) = (inner for inner in optimizer.optimizers if isinstance(inner, TrustRegionAdam))
    way = sum(float(masks._learning_rate(step)) for step in range(10 * epochs))
    assert 14 < way / 5e-3 < 18
    assert sum(float(masks.max_flips(step)) for step in range(10 * epochs)) < 1.15 * TrainConfig().mask_budget


@pytest.mark.parametrize(("target", "head_first", "trust"), [("class", 0, 0.1), ("map", 10, 0.01), ("boxes", 10, 0.01)])
def test_where_pixels_are_judged_the_head_learns_first_and_promises_count_less(target, head_first, trust):
    method = Piggyback()
    model = method.build(_backbone(), 3)
    problem = PROBLEMS[target](("one", "two", "three"), (8, 8))
    optimizer = make_optimizer(method, model, TrainConfig(epochs=4), 10, problem=problem)
    optimizer.build(model.trainable_variables)
    (masks,) = (inner for inner in optimizer.optimizers if isinstance(inner, TrustRegionAdam))
    assert [step for step in range(40) if float(masks.max_flips(step)) > 0] == list(range(head_first, 40))
    assert float(masks._learning_rate(1)) > 0, "the real values move all the while"
    assert masks.trust == pytest.approx(trust)


@pytest.mark.parametrize(("settings", "warned"), [({}, False), ({"mask_lr": 1e-4}, True), ({"mask_lr": 1e-3}, False)])
def test_a_training_that_is_too_short_for_its_masks_says_so(settings, warned, caplog):
    method = Piggyback()
    model = method.build(_backbone(), 3)
    with caplog.at_level("WARNING"):
        make_optimizer(method, model, TrainConfig(epochs=4, **settings), 10)
    assert ("only the head will learn" in caplog.text) == warned


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mask_lr": 1e9}, "--mask_lr=1e+09: masks start 0.005 from the threshold, so that a single step of Adam"),
        ({"mask_lr": 5.1e-3}, "--mask_lr=0.0051: masks start 0.005 from the threshold"),
        ({"mask_lr": 5e-3}, None),
        ({"head_lr": 3.0}, "--head_lr=3: a step of Adam moves every weight by up to that much"),
        ({"head_optimizer": "sgd", "head_lr": 3.0}, None),
        ({"head_optimizer": "sgd", "head_lr": 1e9}, "--head_lr=1e+09: usual rates of SGD are below 100."),
        # What follows from the number of steps is not doubted, even in very few.
        ({"epochs": 1}, None),
    ],
)
def test_rates_out_of_all_proportion_are_doubted(settings, sentence, caplog):
    method = Piggyback()
    model = method.build(_backbone(), 3)
    with caplog.at_level("WARNING"):
        make_optimizer(method, model, TrainConfig(**{"epochs": 40} | settings), 2)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("--")]
    assert [each[: len(sentence)] for each in said] == [sentence] if sentence else not said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"mask_lr": -1.0}, "mask_lr"),
        ({"head_lr": -0.1}, "head_lr"),
        ({"mask_lr": float("nan")}, "mask_lr"),
        ({"schedule": "linear"}, "cosine, step, constant"),
        ({"head_optimizer": "lamb"}, "adam, sgd"),
        ({"mask_trust": -1.0}, "mask_trust"),
        ({"sgd_momentum": 1.0}, "sgd_momentum"),
        ({"mask_gradients": "float16"}, "float32, bfloat16"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)
