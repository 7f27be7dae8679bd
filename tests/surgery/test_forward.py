"""A network computes with tensors in the place of its variables, and stays as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.problems import HeadSpec, HeadStart, add_head, head_logits
from piggyback_tf.surgery import features_with

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 6, 6, 3)).astype("float32")


def _network(dtype="float32"):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.Conv2D(4, 3, dtype=dtype)(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D(dtype=dtype)(x))


@pytest.mark.parametrize("traced", [False, True])
def test_features_are_those_of_the_tensors_and_the_network_stays(traced):
    network = _network()
    kernel = network.weights[0]
    before, other = kernel.numpy(), np.random.default_rng(1).standard_normal(kernel.shape).astype("float32")

    def run(value, images):
        return features_with(network, [(kernel, value)], images)

    found = (tf.function(run, jit_compile=False) if traced else run)(tf.constant(other), tf.constant(IMAGES))
    np.testing.assert_array_equal(kernel.numpy(), before)
    assert not np.allclose(found, network(IMAGES))
    kernel.assign(other)
    np.testing.assert_allclose(found, network(IMAGES), rtol=1e-5)


def test_features_of_a_network_with_half_precision_are_float32():
    assert features_with(_network("mixed_float16"), [], tf.constant(IMAGES)).dtype == tf.float32


def test_a_head_given_by_its_weights_computes_what_the_layer_does():
    model = add_head(_network(), HeadSpec("dense", 3), HeadStart(init="glorot"))
    kernel, bias = model.get_layer("head").weights
    bias.assign([1.0, -2.0, 3.0])
    features = features_with(_network(), [], tf.constant(IMAGES))
    np.testing.assert_allclose(head_logits(features, kernel.value, bias.value), model(IMAGES), rtol=1e-5)
