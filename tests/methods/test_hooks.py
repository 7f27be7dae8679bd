"""What a method can ask of a training, by a method that asks for all of it."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.data.joined import Joined
from piggyback_tf.methods.finetune import Finetune
from piggyback_tf.methods.parts.added_loss import ExtendedModel
from piggyback_tf.sequences import run_sequence
from piggyback_tf.sequences import runner as runner_module
from piggyback_tf.training import train_task
from piggyback_tf.training.backup import BackupAndRestore
from tests.methods.toy import INPUTS, SIZE, toy_backbone, toy_settings, toy_tasks

IMAGES = np.random.default_rng(1).uniform(0, 255, (4, SIZE, SIZE, 3)).astype(np.float32)
CONFIG = toy_settings("finetune", epochs=4, head_lr=1e-2).train
PRICE = 0.5


class BrokenOffError(Exception):
    pass


class Growing(Finetune):
    """Fine-tunes with other images mixed in and a price, and in the second phase over one layer more."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.calls = []

    def training_data(self, tasks):
        (data,) = tasks.values()
        more = toy_tasks()["spots"].validation
        return dataclasses.replace(data, train=Joined([data.train, more], [0, 0]))

    def added_loss(self, model, backbone):
        return lambda images, answers: PRICE * tf.ones_like(answers[:, 0])

    def phases(self, epochs):
        return 2, epochs - 2

    def begin_training(self, model):
        self.calls.append("begin")
        model.get_layer("dense").bias.assign(np.full(10, 0.125))

    def begin_phase(self, model, phase):
        self.calls.append(phase)
        if phase == 0:
            return model
        head = model.get_layer("head")
        grown = keras.layers.Dense(10, kernel_initializer="identity", name="grown")
        again = keras.layers.Dense(head.units, dtype="float32", name="head")
        new = keras.Model(model.input, again(grown(head.input)), name=model.name)
        again.set_weights(head.get_weights())
        return new


def _train(folder=None):
    method = Growing()
    data = method.training_data({"spots": toy_tasks()["spots"]})
    return method, train_task(method, toy_backbone(), data, CONFIG, INPUTS, state_dir=folder)


@pytest.fixture(scope="module", name="whole")
def _whole():
    return _train()


def test_a_new_network_takes_the_place_of_the_one_before(whole):
    method, trained = whole
    assert method.calls == ["begin", 0, 1]
    assert "grown" in [layer.name for layer in trained.model.layers]
    assert len(trained.history["loss"]) == 4 and trained.best_epoch >= 2
    # Learned on from where the first phase left it, and not anew.
    assert not np.array_equal(trained.model.get_layer("grown").kernel, np.eye(10))
    assert not np.array_equal(trained.model.get_layer("dense").bias, np.full(10, 0.125))


def test_the_added_loss_is_in_training_alone(whole):
    _, trained = whole
    history = trained.history
    # The new network of the second phase has none.
    for epoch in (0, 1):
        assert history["loss"][epoch] - history["cross_entropy"][epoch] == pytest.approx(PRICE, abs=1e-5)
        assert history["val_loss"][epoch] == pytest.approx(history["val_cross_entropy"][epoch])


@pytest.mark.parametrize("saves", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 3))])
def test_broken_off_in_either_phase_it_goes_on_to_the_same(saves, whole, tmp_path, monkeypatch):
    save, done = BackupAndRestore._save, []

    def break_off(self):
        save(self)
        done.append(self)
        if len(done) == saves:
            raise BrokenOffError

    monkeypatch.setattr(BackupAndRestore, "_save", break_off)
    with pytest.raises(BrokenOffError):
        _train(tmp_path)
    _, again = _train(tmp_path)
    _, trained = whole
    assert again.history == trained.history
    for one, two in zip(again.model.weights, trained.model.weights, strict=True):
        assert np.array_equal(one, two), one.path


def test_a_sequence_asks_for_the_images(tmp_path, monkeypatch):
    seen = []

    def stop(method, backbone, data, *arguments, **options):
        seen.append(len(data.train))
        raise BrokenOffError

    monkeypatch.setattr(runner_module, "train_task", stop)
    monkeypatch.setitem(runner_module.METHODS._entries, "finetune", Growing)
    task = {"spots": toy_tasks()["spots"]}
    with pytest.raises(BrokenOffError):
        run_sequence(tmp_path, toy_backbone(), task, toy_settings("finetune"))
    assert seen == [len(task["spots"].train) + len(task["spots"].validation)]


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum"])
def test_a_value_for_each_image_counts_as_its_label_does(reduction):
    """On several devices the losses are sums with weights, so that the parts of a batch add up to it."""
    images = keras.Input((2,))
    outputs = keras.layers.Dense(3, name="head")(images)
    terms, weights = np.array([1.0, 2.0, 4.0, 8.0], np.float32), np.array([0.5, 0.25, 0.25, 0.0], np.float32)
    model = ExtendedModel(inputs=images, outputs=outputs, added_loss=lambda x, y: tf.constant(terms))
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction))
    labels, logits = np.array([0, 1, 2, 0]), tf.zeros([4, 3])
    losses = [float(model.compute_loss(None, labels, logits, weights, training=t)) for t in (True, False)]
    expected = float((terms * weights).sum()) / (4 if reduction == "sum_over_batch_size" else 1)
    assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-5)
    scalar = ExtendedModel(inputs=images, outputs=outputs, added_loss=lambda x, y: tf.constant(3.0))
    scalar.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction))
    assert float(scalar.compute_loss(None, labels, logits, weights)) - losses[1] == pytest.approx(3.0, rel=1e-5)
