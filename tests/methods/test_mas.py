"""Memory aware synapses: on which weights answers depend, and what that holds."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods import Memory
from piggyback_tf.methods.mas import MAS, MASConfig
from piggyback_tf.training import TrainConfig
from tests.methods.learning import check_drift_falls, check_same_as_finetuning
from tests.methods.real_training import train_and_remember
from tests.methods.toy import toy_backbone, toy_tasks

CONFIG = TrainConfig(epochs=2, batch_size=10, chance_epochs=0, warmup_steps=0, weights_lr=1e-3, head_lr=1e-2)


@pytest.fixture(scope="module", name="first")
def _first() -> Memory:
    return train_and_remember(MAS(), toy_backbone(), "stripes", toy_tasks()["stripes"], CONFIG)


def test_importance_is_the_mean_of_single_images_gradients_and_is_summed():
    """Against formulas for images x, features f = x W + b and logits f V + c."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((2, 2, 3))
    features = keras.layers.Dense(4, name="fc")(keras.layers.Flatten(name="flat")(inputs))
    backbone = Backbone.from_model(keras.Model(inputs, features), "tiny")
    memory, total = Memory(), {"fc/kernel": 0.0, "fc/bias": 0.0}
    for task in ("one", "two"):
        method = MAS(MASConfig(mas_images=0), memory)
        model = method.build(backbone, 3)
        for variable in model.weights:
            variable.assign(rng.normal(size=variable.shape).astype(np.float32))
        images = rng.normal(size=(7, 2, 2, 3)).astype(np.float32)
        # Labels say nothing here.
        batches = [(images[:4], np.zeros(4, int)), (images[4:], np.zeros(3, int))]
        memory = method.remember(model, backbone, task, batches)
        fc, head = model.get_layer("fc"), model.get_layer("head")
        found = {"fc/kernel": [], "fc/bias": []}
        for image in images:
            flat = image.reshape(-1)
            logits = (flat @ fc.kernel.numpy() + fc.bias.numpy()) @ head.kernel.numpy() + head.bias.numpy()
            by_fc = head.kernel.numpy() @ (2 * logits)
            found["fc/kernel"].append(np.abs(np.outer(flat, by_fc)))
            found["fc/bias"].append(np.abs(by_fc))
        total = {path: total[path] + np.mean(found[path], axis=0) for path in total}
        assert memory.learning.keys() == total.keys()
        for path in total:
            np.testing.assert_allclose(memory.learning[path], total[path], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_weight_0_is_finetuning_in_sequence(first):
    check_same_as_finetuning(MAS(MASConfig(mas_lambda=0.0), first), toy_tasks()["spots"], CONFIG)


@pytest.mark.slow
def test_drift_falls_with_the_weight(first):
    methods = [MAS(MASConfig(mas_lambda=weight), first) for weight in (0.0, 1e2, 1e3, 1e4)]
    check_drift_falls(methods, toy_tasks()["spots"], CONFIG)


def test_no_images_no_importance():
    with pytest.raises(ValueError, match="no images by which weights could matter"):
        MAS().remember(MAS().build(toy_backbone(), 2), toy_backbone(), "t", [])


@pytest.mark.parametrize(("name", "value"), [("mas_lambda", -1.0), ("mas_images", -1)])
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`?{name}`? must .*{name}={value}"):
        MASConfig(**{name: value})
