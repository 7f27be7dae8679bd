"""What TensorFlow and Keras need to train on several machines; `team.py` holds the machines together.

Keras' `fit` is made for one process. Two of its functions, internal ones, are replaced here, and a test looks at each:

- `_maybe_symbolic_build` makes metrics from a batch, and cannot take one that lies on several machines apart.
- `reduce_per_replica` asks whether there are several machines, to average what each step reports over them. That fails
  with numbers, and would send them in every step. The averages of an epoch are over all machines without it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.tensorflow import trainer as keras_trainer
from tensorflow.python.distribute import collective_all_reduce_strategy
from tensorflow.python.eager import context

from piggyback_tf.training.team import Team


def make_workers_strategy() -> tf.distribute.MultiWorkerMirroredStrategy:
    """Returns the strategy of the workers in `TF_CONFIG`, once all of them call this."""
    # TensorFlow's own heartbeat takes a busy machine for a dead one after ten seconds.
    context.context().configure_coordination_service("")
    with _replaced(collective_all_reduce_strategy.CollectiveAllReduceExtended, "_enable_check_health", False):
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextlib.contextmanager
def fit_on_workers(model: keras.Model, labels: Sequence[int], team: Team) -> Iterator[None]:
    """Makes Keras' `fit` of a compiled model work on several machines while the block runs; of one process nothing.

    Args:
        model: The model.
        labels: The shape of the labels of one image.
        team: The machines.
    """
    if team.size == 1:
        yield
        return

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        """Makes the metrics from a batch of any content."""
        del iterator, data_batch
        with model.distribute_strategy.scope():
            model._symbolic_build(
                data_batch=(tf.zeros([1, *model.input_shape[1:]]), tf.zeros([1, *labels], tf.int32), tf.ones([1]))
            )

    model._maybe_symbolic_build = build
    try:
        with _replaced(keras_trainer, "_collective_all_reduce_multi_worker", lambda strategy: False):
            yield
    except tf.errors.OpError:
        # A worker that is gone shows first in what the others compute with it. Why it is gone, its connection says.
        team.wait_for_end()
        raise
    finally:
        del model._maybe_symbolic_build


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute another value while the block runs."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def distributed(dataset: tf.data.Dataset, rows: range) -> Any:
    """Returns the batches of a worker, each shared by its devices.

    Args:
        dataset: Batches of the worker's rows of every batch.
        rows: These rows.

    Raises:
        ValueError: If the devices cannot share them evenly.
    """
    strategy = tf.distribute.get_strategy()
    devices = len(strategy.extended.worker_devices)
    if len(rows) % devices:
        raise ValueError(
            f"A worker has {len(rows)} images of every batch, which its {devices} devices cannot share evenly."
        )
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    own = (dataset.rebatch(len(rows) // devices) if devices > 1 else dataset).with_options(options)
    return strategy.distribute_datasets_from_function(lambda context: own)
