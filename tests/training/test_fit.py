"""Training a task from Python: best epoch, determinism, guards, devices."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import safe_open

from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.data import Subset, load_data
from piggyback_tf.masking import masked_weights
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.problems.classification import Classification
from piggyback_tf.training import InputConfig, TrainConfig, TrainingError, fit, make_strategy, train_task
from piggyback_tf.training.guards import StopAtChance, StopOnNaN


@pytest.fixture(scope="module", name="data")
def _data():
    return load_data("digits")


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return load_backbone("shapesnet")


QUICK = TrainConfig(
    epochs=2, batch_size=64, chance_epochs=0, head_lr=1e-2, mask_lr=2e-3, mask_budget=1.0, warmup_steps=5
)


def _train(method, backbone, data, config=QUICK, **arguments):
    return train_task(METHODS[method](), backbone, data, config, InputConfig(), **arguments)


def _pack(trained, backbone, data):
    return TaskPack.from_model(
        trained.model,
        task="digits",
        class_names=list(data.class_names),
        backbone=backbone,
        method="piggyback",
        eval_augment="resize(32,32)",
    )


# All methods: tests/methods/test_contract.py.
# With masks that do not move it would be the error of the other one, which is above that.
@pytest.mark.parametrize(("method", "highest"), [("classifier_only", 25), ("piggyback", 15)])
def test_methods_learn_and_leave_the_base_alone(method, highest, backbone, data):
    digest, flags = backbone.hash, [v.trainable for v in backbone.model.variables]
    trained = _train(method, backbone, data)
    assert trained.history["val_error"][-1] < highest
    assert trained.history["loss"][1] < trained.history["loss"][0]
    assert backbone.hash == digest
    assert [v.trainable for v in backbone.model.variables] == flags


@pytest.mark.parametrize("method", ["classifier_only", "piggyback"])
def test_the_model_has_the_weights_of_the_best_epoch(method, backbone, data):
    class Ruin(keras.callbacks.Callback):
        """Turns the head round before the last epoch, which is too short to learn it again."""

        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                kernel = self.model.get_layer("head").kernel
                kernel.assign(-100 * kernel)

    class Ruined(METHODS[method]):
        def callbacks(self, model):
            return [*super().callbacks(model), Ruin()]

    data = dataclasses.replace(data, train=Subset(data.train, range(640)))
    config = dataclasses.replace(QUICK, epochs=3, schedule="constant")
    trained = train_task(Ruined(), backbone, data, config, InputConfig())
    scores = list(zip(trained.history["val_error"], trained.history["val_loss"], strict=True))
    assert trained.best_epoch == scores.index(min(scores)) < 2
    best, last = min(trained.history["val_error"]), trained.history["val_error"][-1]
    assert last > best + 20
    images = np.stack([data.validation.read(i) for i in range(len(data.validation))])
    images = tf.cast(tf.round(tf.image.resize(images, (32, 32), antialias=True)), tf.float32)
    error = 100 * np.mean(trained.model.predict(images, verbose=0).argmax(1) != data.validation.labels)
    assert error == pytest.approx(best, abs=2)


def test_two_runs_and_another_order_of_tasks_give_the_same_pack(backbone, data):
    data = dataclasses.replace(data, train=Subset(data.train, range(300)))
    first = _pack(_train("piggyback", backbone, data), backbone, data).content_digest()
    # Another task in between, and other layers that move Keras' automatic names and seeds on.
    _train("classifier_only", backbone, data)
    keras.layers.Dense(3), keras.layers.Dropout(0.5)
    assert _pack(_train("piggyback", backbone, data), backbone, data).content_digest() == first
    other = TrainConfig(**{**QUICK.__dict__, "seed": 1})
    assert _pack(_train("piggyback", backbone, data, other), backbone, data).content_digest() != first


def test_images_of_another_size_are_refused(backbone, data):
    with pytest.raises(TrainingError, match=r"resize\(24,24\).*24x24.*32x32"):
        train_task(METHODS["classifier_only"](), backbone, data, QUICK, InputConfig(augment_train="resize(24,24)"))
    watched = dataclasses.replace(QUICK, chance_epochs=3)
    with pytest.raises(TrainingError, match=r"resize\(24,24\).*24x24.*32x32"):
        train_task(METHODS["piggyback"](), backbone, data, watched, InputConfig(augment_eval="resize(24,24)"))


def test_a_loss_that_is_no_number_ends_the_training(backbone, data):
    class Poisoned(METHODS["classifier_only"]):
        def build(self, *args, **kwargs):
            model = super().build(*args, **kwargs)
            model.get_layer("head").bias.assign(np.full(10, np.nan))
            return model

    with pytest.raises(TrainingError, match=r"loss of Poisoned became nan at step 1.*\(--head_lr\).*steps\."):
        train_task(Poisoned(), backbone, data, QUICK, InputConfig())
    StopOnNaN("Poisoned", ["head"]).on_train_batch_end(0, {"loss": 1.0})


@pytest.mark.parametrize("epochs", [pytest.param(4, marks=pytest.mark.slow), 2])
def test_a_network_that_dies_ends_the_training_and_every_restart_of_it(epochs, backbone, data, tmp_path):
    """Be it in the middle or at its last epoch, the second."""

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                for weight in masked_weights(self.model).values():
                    weight.mask_real.assign(np.full(weight.mask_real.shape, -1, "float32"))

    class Killed(METHODS["piggyback"]):
        def callbacks(self, model):
            return [Kill()]

    config = dataclasses.replace(QUICK, epochs=epochs, chance_epochs=3)
    for _ in ("new", "again"):
        with pytest.raises(TrainingError, match="network has died.*--mask_trust"):
            train_task(Killed(), backbone, data, config, InputConfig(), state_dir=tmp_path)
        state = safe_open(tmp_path / "training_state.safetensors", framework="np").metadata()["progress"]
        assert json.loads(state)["epochs_done"] == 2
    regardless = dataclasses.replace(config, chance_epochs=0)
    assert (
        len(train_task(Killed(), backbone, data, regardless, InputConfig(), state_dir=tmp_path).history["loss"])
        == epochs
    )


def test_a_few_steps_at_chance_are_no_reason_to_stop(data):
    few = dataclasses.replace(data, train=Subset(data.train, range(64)))
    config = TrainConfig(epochs=5, batch_size=32, head_lr=1e-9, chance_epochs=2, warmup_steps=0)
    zero = Backbone.from_model(_constant_network(), "constant")
    assert len(_train("classifier_only", zero, few, config).history["loss"]) == 5


@pytest.mark.parametrize("epochs", [5, 3])
def test_a_loss_at_chance_ends_the_training_and_every_restart_of_it(epochs, data, tmp_path):
    """Be it in the middle or at its last epoch, the third."""
    data = dataclasses.replace(data, train=Subset(data.train, range(640)))
    config = TrainConfig(epochs=epochs, batch_size=64, head_lr=1e-9, chance_epochs=2, warmup_steps=5)
    zero = Backbone.from_model(_constant_network(), "constant")
    for start in ("new", "again"):
        with pytest.raises(TrainingError, match="guessing gives 2.30.* without a task. What helps most .*--weights"):
            _train("classifier_only", zero, data, config, state_dir=tmp_path)
        state = safe_open(tmp_path / "training_state.safetensors", framework="np").metadata()["progress"]
        assert json.loads(state)["epochs_done"] == 3, start
    regardless = dataclasses.replace(config, chance_epochs=0)
    trained = _train("classifier_only", zero, data, regardless, state_dir=tmp_path)
    assert len(trained.history["loss"]) == epochs


def test_the_epoch_after_which_a_training_is_stopped_has_its_line(data, capsys):
    few = dataclasses.replace(data, train=Subset(data.train, range(640)))
    config = TrainConfig(epochs=5, batch_size=64, head_lr=1e-9, chance_epochs=2, warmup_steps=0)
    zero = Backbone.from_model(_constant_network(), "constant")
    with pytest.raises(TrainingError, match="Nothing is learned"):
        _train("classifier_only", zero, few, config, verbose=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  epoch ")]
    assert [line.split(":")[0] for line in lines] == ["  epoch 1/5", "  epoch 2/5"]


def test_chance_is_the_entropy_of_the_classes_and_epochs_count_in_a_row():
    labels = np.array([0] * 90 + [1] * 10)
    watch = StopAtChance(Classification("ab", (8, 8)).chance(labels), 2, 0, [0.33])
    assert watch.chance == pytest.approx(0.3251, abs=1e-4)
    watch.on_epoch_end(1, {"cross_entropy": 0.1})
    watch.on_epoch_end(2, {"cross_entropy": 0.33})
    with pytest.raises(TrainingError):
        watch.on_epoch_end(3, {"cross_entropy": 0.33})


def test_guessing_among_several_heads_is_guessing_within_each():
    labels = np.array([0, 1, 2, 2, 3, 4, 2, 2])
    # Two of two classes, then six of three: ln 2 and the entropy of (4, 1, 1) / 6.
    expected = (2 * np.log(2) + 6 * (2 / 3 * np.log(3 / 2) + 1 / 3 * np.log(6))) / 8
    assert Classification("abcde", (8, 8)).chance(labels, (2, 3)) == pytest.approx(expected)


def test_a_high_loss_that_falls_or_that_is_of_the_warmup_is_no_chance():
    falling = StopAtChance(np.log(10), 3, 0)
    for epoch, loss in enumerate([7.1, 6.7, 6.5, 6.0, 5.0]):
        falling.on_epoch_end(epoch, {"cross_entropy": loss})
    warming = StopAtChance(np.log(10), 2, 3)
    for epoch in range(4):
        warming.on_epoch_end(epoch, {"cross_entropy": 2.4})
    with pytest.raises(TrainingError, match="was 2.400 2 epochs ago"):
        warming.on_epoch_end(4, {"cross_entropy": 2.4})


def _constant_network():
    inputs = keras.Input((32, 32, 3))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(0.0)(inputs)))


@pytest.mark.slow
def test_two_devices_give_the_weights_of_one():
    """Needs two logical devices, which TensorFlow only makes before it starts: a process of its own."""
    # As `python -c` in the repository's root, where the package is found without being installed.
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _TWO_DEVICES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) <= 1e-5


_TWO_DEVICES = """
import dataclasses
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import Subset, load_data
from piggyback_tf.methods import METHODS
from piggyback_tf.training import InputConfig, TrainConfig, make_strategy, train_task

data = load_data("digits")
# 97 images in batches of 32: the last batch has one, which leaves a device with nothing.
few = dataclasses.replace(data, train=Subset(data.train, range(97)), validation=Subset(data.validation, range(33)))
config = TrainConfig(epochs=3, batch_size=32, chance_epochs=0, warmup_steps=2, mask_lr=1e-4)
weights, losses = {}, {}
for name in ("none", "mirrored"):
    strategy = make_strategy(name)
    assert strategy.num_replicas_in_sync == (2 if name == "mirrored" else 1)
    with strategy.scope():
        trained = train_task(METHODS["piggyback"](), load_backbone("shapesnet"), few, config, InputConfig())
    losses[name] = [trained.history[key] for key in ("loss", "val_loss", "error", "val_error")]
    weights[name] = [v.numpy() for v in trained.model.trainable_variables]
np.testing.assert_allclose(losses["none"][1], losses["mirrored"][1], rtol=1e-3)
np.testing.assert_allclose(losses["none"][3], losses["mirrored"][3], atol=1e-4)
print(max(np.abs(a - b).max() for a, b in zip(weights["none"], weights["mirrored"], strict=True)))
"""


def test_strategies_are_named():
    with pytest.raises(ValueError, match="one of auto, none, mirrored"):
        make_strategy("tpu")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains(policy, data):
    keras.config.set_dtype_policy(policy)
    try:
        few = dataclasses.replace(data, train=Subset(data.train, range(64)), validation=Subset(data.train, range(32)))
        method = METHODS["piggyback"](METHODS["piggyback"].Config(head_init="glorot"))
        config = TrainConfig(epochs=1, batch_size=32, mask_lr=1e-4)
        trained = train_task(method, load_backbone("shapesnet"), few, config, InputConfig())
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(trained.history["loss"][0])
    # Steps were taken, none of them skipped for an overflow.
    assert all(np.all(weight.mask_real.numpy() != 1e-2) for weight in masked_weights(trained.model).values())
    assert trained.model.output.dtype == "float32"


@pytest.mark.parametrize(("method", "compiled"), [("piggyback", False), ("classifier_only", "auto")])
def test_on_a_gpu_xla_compiles_all_but_masks(method, compiled, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["a GPU"] if kind == "GPU" else [])
    method, problem, asked = METHODS[method](), Classification(("one", "two"), (32, 32)), {}
    model = method.build(load_backbone("shapesnet"), 2)
    compile_model = model.compile
    monkeypatch.setattr(model, "compile", lambda **options: asked.update(options) or compile_model(**options))
    fit._compile(model, method, problem, TrainConfig(), 10, 1, [])
    assert asked["jit_compile"] == compiled
