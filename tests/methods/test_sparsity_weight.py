"""A price for dropped weights."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.masking import masked_weights, read_masks
from piggyback_tf.masking.threshold import count_dropped
from piggyback_tf.methods.parts.added_loss import ExtendedModel
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import train_task
from tests.methods.toy import INPUTS, SIZE, toy_backbone, toy_settings, toy_tasks


def test_dropped_weights_are_counted_and_pulled_back_up_to_the_start():
    mask_real = tf.Variable([-0.02, 0.0, 4e-3, 5e-3, 9e-3, 1e-2, 2e-2])
    with tf.GradientTape() as tape:
        dropped = 3.0 * count_dropped(tf.convert_to_tensor(mask_real), 5e-3, 1e-2)
    assert dropped == 9.0
    np.testing.assert_array_equal(tape.gradient(dropped, mask_real), [-3, -3, -3, -3, -3, 0, 0])


def _losses(model):
    images = np.random.default_rng(0).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
    labels = np.array([0, 1, 2, 0])
    model.compile(loss="sparse_categorical_crossentropy")
    answers = tf.nn.softmax(model(images))
    return [float(model.compute_loss(images, labels, answers, training=training)) for training in (True, False)]


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_training_pays_for_the_fraction_of_dropped_weights_and_evaluation_does_not(kind):
    model = Piggyback(PiggybackConfig(mask_kind=kind, sparsity_weight=2.0)).build(toy_backbone(), 3)
    assert np.ptp(_losses(model)) == 0
    for weight in masked_weights(model).values():
        weight.mask_real.assign(np.random.default_rng(0).uniform(-0.02, 0.02, weight.mask_real.shape))
    masks = np.concatenate([mask.reshape(-1) for mask in read_masks(model).values()])
    training, evaluation = _losses(model)
    assert training - evaluation == pytest.approx(2.0 * np.mean(masks != 1), rel=1e-4)


def test_without_a_price_the_model_is_as_ever():
    assert not isinstance(Piggyback().build(toy_backbone(), 3), ExtendedModel)


def _train(weight, **config):
    settings = toy_settings("piggyback", epochs=8, mask_lr=2e-3, mask_trust=0.0)
    method = Piggyback(PiggybackConfig(sparsity_weight=weight, head_init="glorot", **config))
    trained = train_task(method, toy_backbone(), toy_tasks()["spots"], settings.train, INPUTS)
    masks = np.concatenate([mask.reshape(-1) for mask in read_masks(trained.model).values()])
    return np.mean(masks != 1), trained


@pytest.mark.slow
def test_the_higher_the_price_the_fewer_weights_are_dropped():
    fractions = [_train(weight)[0] for weight in (0.0, 3.0, 1e4)]
    assert fractions[0] > fractions[1] > fractions[2]
    assert fractions[0] > 0.02
    assert fractions[2] == 0


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(weight):
    with pytest.raises(ValueError, match="`sparsity_weight` must be"):
        PiggybackConfig(sparsity_weight=weight)


def test_masks_need_a_start_to_go_back_to():
    with pytest.raises(ValueError, match="`mask_scale` above `mask_threshold`"):
        PiggybackConfig(sparsity_weight=1.0, mask_init="magnitude", mask_scale=1e-3)


@pytest.mark.slow
def test_two_devices_pay_what_one_pays():
    """Needs two logical devices, which TensorFlow only makes before it starts: a process of its own."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _TWO_DEVICES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


_TWO_DEVICES = """
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from piggyback_tf.masking import masked_weights
from piggyback_tf.methods.piggyback import Piggyback, PiggybackConfig
from piggyback_tf.training import TrainConfig, make_strategy, train_task
from tests.methods.toy import INPUTS, toy_backbone, toy_tasks

# 20 images in batches of 6: the last batch has two, and is filled up. Steps of SGD are as long as the gradients.
config = TrainConfig(
    epochs=2, batch_size=6, chance_epochs=0, warmup_steps=0, mask_optimizer="sgd", mask_lr=1e-2, mask_trust=0.0
)
found = {}
for weight in (0.0, 30.0):
    for name in ("none", "mirrored"):
        strategy = make_strategy(name)
        assert strategy.num_replicas_in_sync == (2 if name == "mirrored" else 1)
        with strategy.scope():
            method = Piggyback(PiggybackConfig(sparsity_weight=weight, mask_init="uniform"))
            trained = train_task(method, toy_backbone(), toy_tasks()["spots"], config, INPUTS)
        masks = [w.mask_real.numpy().reshape(-1) for w in masked_weights(trained.model).values()]
        found[weight, name] = np.concatenate(masks)
for weight in (0.0, 30.0):
    np.testing.assert_allclose(found[weight, "none"], found[weight, "mirrored"], rtol=1e-3, atol=2e-5)
assert np.abs(found[30.0, "none"] - found[0.0, "none"]).max() > 1e-3
"""
