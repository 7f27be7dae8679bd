"""Joint training: every head learns from its own task's images alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.joint import Joint, JointModel
from piggyback_tf.sequences import run_sequence
from piggyback_tf.settings.methods import CONFIGS
from tests.methods.toy import CLASSES, SIZE, toy_backbone, toy_settings, toy_tasks

HEADS = {"a": 2, "b": 3, "c": 4}
IMAGES = np.random.default_rng(0).uniform(0, 255, (6, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(name="model")
def _model():
    model = Joint(Joint.Config(head_init="glorot"), heads=HEADS).build(toy_backbone(), 9)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="right")],
        jit_compile=False,
    )
    return model


@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 0, 1], [2, 3, 4, 2, 3, 4], [5, 6, 7, 8, 5, 6]], ids=list(HEADS))
def test_loss_and_gradient_are_those_of_the_own_head(model, labels):
    labels = np.array(labels)
    own = slice(*{0: (0, 2), 2: (2, 5), 5: (5, 9)}[labels.min()])
    with tf.GradientTape() as tape:
        logits = model(IMAGES, training=True)
        loss = model.compute_loss(IMAGES, labels, logits)
    kernel, bias = tape.gradient(loss, [model.get_layer("head").kernel.value, model.get_layer("head").bias.value])
    alone = tf.nn.sparse_softmax_cross_entropy_with_logits(labels - own.start, logits[:, own])
    np.testing.assert_allclose(loss, tf.reduce_mean(alone), rtol=1e-6)
    others = np.ones(9, bool)
    others[own] = False
    assert np.all(kernel.numpy()[:, others] == 0)
    assert np.all(bias.numpy()[others] == 0)
    assert np.all(np.any(kernel.numpy()[:, own] != 0, axis=0))
    assert np.all(bias.numpy()[own] != 0)


def test_the_error_counts_the_own_head(model):
    # The highest logit of all is in another head than the label's; in the own head class 3 is the highest.
    logits = tf.constant([[9.0, 8.0, 0.0, 2.0, 1.0, 7.0, 7.0, 7.0, 7.0]] * 2)
    found = model.compute_metrics(None, tf.constant([3, 4]), logits)
    assert found["right"] == 0.5


def test_recalled_networks_are_slices_of_the_trained_one(tmp_path):
    backbone, tasks = toy_backbone(), toy_tasks()
    trained = {}

    class Watched(Joint):
        def remember(self, model, *arguments):
            trained["logits"] = model(IMAGES, training=False).numpy()
            return super().remember(model, *arguments)

    METHODS._entries["watched"], CONFIGS._entries["watched"] = Watched, Joint.Config
    try:
        metrics = run_sequence(tmp_path, backbone, tasks, toy_settings("watched", epochs=2))
    finally:
        del METHODS._entries["watched"], CONFIGS._entries["watched"]
    memory = Memory.load(tmp_path / "2_spots" / "memory.safetensors")
    assert memory.tasks == tuple(CLASSES)
    assert metrics["steps"][0] == {"errors": {}} and metrics["steps"][1]["errors"].keys() == CLASSES.keys()
    first = 0
    for task, classes in CLASSES.items():
        logits = Joint(memory=memory).recall(backbone, task)(IMAGES, training=False).numpy()
        np.testing.assert_allclose(logits, trained["logits"][:, first : first + classes], rtol=1e-5, atol=1e-6)
        first += classes
    assert trained["logits"].shape == (6, first)
    # The network was trained, and by both tasks.
    assert not np.array_equal(memory.shared["dense/kernel"], backbone.model.get_layer("dense").kernel)


def test_one_task_alone_is_that_of_finetune():
    config = Joint.Config(head_init="glorot")
    one, two = Joint(config, heads={"a": 3}), METHODS["finetune"](config)
    for first, second in zip(
        one.build(toy_backbone(), 3, 5).weights, two.build(toy_backbone(), 3, 5).weights, strict=True
    ):
        assert np.array_equal(first, second)


def test_the_model_is_saved_with_its_heads(tmp_path):
    model = Joint(Joint.Config(head_init="glorot"), heads=HEADS).build(toy_backbone(), 9)
    model.save(tmp_path / "joint.keras")
    loaded = keras.models.load_model(tmp_path / "joint.keras")
    assert isinstance(loaded, JointModel) and loaded.classes == (2, 3, 4)
    assert np.array_equal(loaded(IMAGES), model(IMAGES))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="several tasks at once and was given one.*--tasks=.*'finetune'"):
        Joint().build(toy_backbone(), 5)
    with pytest.raises(ValueError, match="a, b, c have 9 classes together. Received: 5"):
        Joint(heads=HEADS).build(toy_backbone(), 5)
    with pytest.raises(ValueError, match="at least 2 classes; task 'b' has fewer"):
        Joint(heads={"a": 2, "b": 1}).build(toy_backbone(), 3)
