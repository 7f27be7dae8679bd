"""Graphs of a training that is over are not kept."""

import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import ops

from piggyback_tf.training.graphs import released_graphs


def _train() -> weakref.ref:
    """Trains a function with a gradient of its own for a step; returns a reference to its graph."""

    @tf.custom_gradient
    def doubled(x):
        return 2.0 * x, lambda upstream: 3.0 * upstream

    variable = tf.Variable(1.0)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = doubled(variable)
        return tape.gradient(loss, variable)

    assert float(step()) == 3.0
    return weakref.ref(step.get_concrete_function().graph)


def test_a_graph_goes_with_its_model():
    names = len(ops.gradient_registry.list())
    kept = _train()
    gc.collect()
    assert kept() is not None, "TensorFlow lets go of it by itself: this module can go"
    with released_graphs():
        graph = _train()
    gc.collect()
    assert graph() is None
    assert kept() is not None and len(ops.gradient_registry.list()) == names + 1, "what was there stays"


def test_a_model_works_on_and_is_compiled_again_for_more():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(4, activation="silu")(inputs)))
    images, labels = np.ones((6, 4), np.float32), np.arange(6) % 3

    def compile_():
        model.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    with released_graphs():
        compile_()
        first = model.train_on_batch(images, labels)
    second = model.train_on_batch(images, labels)
    compile_()
    assert first > second > model.train_on_batch(images, labels)
    assert model.predict(images, verbose=0).shape == (6, 3)


def test_an_error_releases_too():
    names = len(ops.gradient_registry.list())
    with pytest.raises(RuntimeError, match="broke off"), released_graphs():
        _train()
        raise RuntimeError("broke off")
    assert len(ops.gradient_registry.list()) == names
