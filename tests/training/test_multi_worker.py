"""What several machines need of batches, weights, Keras and TensorFlow, in one process.

Keras and TensorFlow promise nothing of what is looked at here: if one of these tests fails after an upgrade, look at
`piggyback_tf/training/multi_worker.py` first.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.backend.tensorflow import trainer as keras_trainer
from tensorflow.python.distribute import collective_all_reduce_strategy
from tensorflow.python.eager import context

from piggyback_tf.data import DataError, load_data, make_dataset
from piggyback_tf.data.sources import Subset
from piggyback_tf.training.multi_worker import fit_on_workers
from piggyback_tf.training.strategies import weight_for_replicas, weight_for_workers
from piggyback_tf.training.team import Team


class Counted(Subset):
    """Some digits, of which every one that is read is noted."""

    def __init__(self, count):
        super().__init__(load_data("digits").train, range(count))
        self.read_indices = []

    def read(self, index):
        self.read_indices.append(int(index))
        return super().read(index)


def batches(source, rows, **arguments):
    settings = {"batch_size": 8, "training": True, "seed": 3, "epochs": 2, "cache": "none"} | arguments
    return make_dataset(source, "resize(40,40)|random_crop(32)", rows=rows, **settings)


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_rows_of_batches_are_those_of_the_whole_batches(cache):
    """19 images in batches of 8: of the last batch of an epoch, three images, the second half is filled up."""
    whole = list(batches(Counted(19), None, cache=cache).as_numpy_iterator())
    halves = [list(batches(Counted(19), rows, cache=cache).as_numpy_iterator()) for rows in (range(4), range(4, 8))]
    assert [len(half) for half in halves] == [len(whole)] * 2 == [6, 6]
    for batch, first, second in zip(whole, *halves, strict=True):
        for part, *parts in zip(batch, first, second, strict=True):
            together = np.concatenate(parts)
            assert len(together) == 8
            np.testing.assert_array_equal(together[: len(part)], part)


def test_only_images_of_its_rows_are_read():
    sources = [Counted(16), Counted(16)]
    for source, rows in zip(sources, (range(4), range(4, 8)), strict=True):
        list(batches(source, rows, epochs=1))
    # Beside the first image of all, which says what size they have.
    first, second = ({*source.read_indices[1:]} for source in sources)
    assert len(first) == len(second) == 8
    assert not first & second


@pytest.mark.parametrize("rows", [range(4, 9), range(3, 3), range(0, 8, 2), range(-1, 4)])
def test_rows_outside_of_a_batch_are_refused(rows):
    with pytest.raises(DataError, match="rows must be a range within the 8 images of a batch"):
        batches(Counted(16), rows)


@pytest.mark.parametrize("training", [True, False])
def test_workers_weigh_images_as_replicas_do(training):
    arguments = {"training": training, "epochs": 2} if training else {"training": False, "epochs": 1}
    augment = "resize(32,32)"

    def made(rows):
        return make_dataset(Counted(19), augment, batch_size=8, seed=1, cache="none", rows=rows, **arguments)

    expected = [batch[2] for batch in weight_for_replicas(made(None), 8, 2, None if training else 19)]
    parts = [weight_for_workers(made(rows), 8, rows, 19, training=training) for rows in (range(4), range(4, 8))]
    found = [np.concatenate([first[2], second[2]]) for first, second in zip(*parts, strict=True)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(np.sum(found[:3]), 3.0, rtol=1e-6)


def test_no_thread_that_tunes_batches_is_left_for_the_end_of_a_training_to_wait_for():
    made = make_dataset(Counted(19), "resize(32,32)", batch_size=8, training=False, cache="none")
    shared = weight_for_replicas(made, 8, 2), weight_for_workers(made, 8, range(4), 19, training=False)
    assert made.options().autotune.enabled is not False
    assert [dataset.options().autotune.enabled for dataset in shared] == [False, False]


def small_model():
    images = keras.Input((4, 4, 3))
    model = keras.Model(images, keras.layers.Dense(2)(keras.layers.Flatten()(images)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, weighted_metrics=[keras.metrics.SparseCategoricalAccuracy()])
    return model


def test_fit_builds_metrics_by_the_function_that_is_replaced():
    model, called = small_model(), []
    model._maybe_symbolic_build = lambda iterator=None, data_batch=None: called.append(iterator)
    model.fit(np.zeros([4, 4, 4, 3], np.float32), np.zeros([4], np.int32), verbose=0)
    assert len(called) == 1
    parameters = inspect.signature(keras_trainer.TensorFlowTrainer._maybe_symbolic_build).parameters
    assert list(parameters) == ["self", "iterator", "data_batch"]


def test_metrics_are_built_from_a_batch_of_any_content():
    """As `fit_on_workers` does it; of a team of two, without its other machine."""
    team = Team()
    team.size = 2
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model = small_model()
        assert not model._compile_metrics.built
        with fit_on_workers(model, (), team):
            model._maybe_symbolic_build(iterator=None)
            assert model._compile_metrics.built
            assert model._compile_loss.built
    assert "_maybe_symbolic_build" not in vars(model)


def test_logs_of_a_step_are_averaged_by_the_function_that_is_replaced(monkeypatch):
    asked = []
    monkeypatch.setattr(keras_trainer, "_collective_all_reduce_multi_worker", asked.append)
    strategy = tf.distribute.get_strategy()
    assert keras_trainer.reduce_per_replica({"loss": tf.constant(2.0)}, strategy, "auto")["loss"].numpy() == 2.0
    assert asked == [strategy]


def test_fit_is_as_before_after_the_block():
    before = keras_trainer._collective_all_reduce_multi_worker
    team = Team()
    team.size = 2
    with pytest.raises(KeyError), fit_on_workers(small_model(), (), team):
        assert keras_trainer._collective_all_reduce_multi_worker is not before
        raise KeyError
    assert keras_trainer._collective_all_reduce_multi_worker is before


def test_tensorflow_has_the_heartbeats_that_are_switched_off():
    assert "service_type" in inspect.signature(context.Context.configure_coordination_service).parameters
    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    assert extended._enable_check_health is True
    started = inspect.getsource(extended._initialize_multi_worker)
    assert "if context.context().coordination_service is None:" in started
    assert "if self._enable_check_health and context.executing_eagerly():" in started
