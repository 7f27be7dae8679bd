"""Devices: one or several GPUs, or the CPU."""

import math

import keras
import tensorflow as tf

from piggyback_tf.settings import STRATEGIES
from piggyback_tf.settings.records import check_choice
from piggyback_tf.training.multi_worker import make_workers_strategy


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy in whose scope the backbone and the task's model are built.

    Args:
        name: `"none"`: one device. `"mirrored"`: `MirroredStrategy` over all GPUs, or over all logical CPUs if there
            is no GPU. `"auto"`: mirrored if there are several GPUs, otherwise none. `"multi_worker"`: the devices of
            all machines in `TF_CONFIG`.

    Raises:
        ValueError: If the name is none of these.
    """
    check_choice("strategy", name, STRATEGIES)
    if name == "multi_worker":
        return make_workers_strategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def prepare_devices(strategy: str, precision: str, *, deterministic: bool) -> tf.distribute.Strategy:
    """Sets precision and determinism for the whole process, and returns the strategy to build and train in.

    Args:
        strategy: As for `make_strategy`.
        precision: Half precision of the computation, one of `PRECISIONS`.
        deterministic: Whether runs are to be equal bit for bit on GPUs, too.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if precision != "none":
        keras.config.set_dtype_policy(f"mixed_{precision}")
    return make_strategy(strategy)


def weight_for_replicas(
    dataset: tf.data.Dataset, batch_size: int, replicas: int, images: int | None = None
) -> tf.data.Dataset:
    """Makes every batch divide evenly among replicas, with weights that keep the loss what it is on one device.

    A last batch that is smaller is filled up with its own images at weight 0; otherwise a replica could be left with
    none. The loss is a weighted sum over all replicas' images, averaged over the batches where Keras reports it. For
    training, real images weigh `1 / real images of the batch`, which gives the mean over each batch; for validation
    all weigh the same, which gives the mean over all images.

    Args:
        dataset: Batches of images and labels.
        batch_size: Images of a full batch over all replicas.
        replicas: How many devices share a batch.
        images: Number of images in the whole dataset, for validation; None for training.

    Returns:
        Batches of images, labels and float32 weights `[batch_size]`.

    Raises:
        ValueError: If the batch size is not a multiple of the number of replicas.
    """
    if batch_size % replicas:
        raise ValueError(f"The batch size must be a multiple of the {replicas} devices. Received: {batch_size}.")

    def fill(pictures: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        count = tf.shape(labels)[0]
        places = tf.range(batch_size)
        weights = _weights(places, count, batch_size, images)
        return tf.gather(pictures, places % count), tf.gather(labels, places % count), weights

    return _untuned(dataset.map(fill, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


def weight_for_workers(
    dataset: tf.data.Dataset, batch_size: int, rows: range, images: int, *, training: bool
) -> tf.data.Dataset:
    """Gives the rows of every batch that one of several machines reads the weights of `weight_for_replicas`.

    Args:
        dataset: Batches of images and labels, those of `rows` alone, from the start of an epoch on.
        batch_size: Images of a full batch over all machines.
        rows: Which of them are here.
        images: Number of images in an epoch.
        training: Whether weights are those of training.

    Returns:
        Batches of images, labels and float32 weights `[len(rows)]`.
    """
    steps = math.ceil(images / batch_size)
    places = tf.range(rows.start, rows.stop)

    def weigh(number: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        first = tf.cast(number % steps, tf.int32) * batch_size
        count = tf.minimum(batch_size, images - first)
        return *batch, _weights(places, count, batch_size, None if training else images)

    return _untuned(dataset.enumerate().map(weigh, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True))


def _untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns the same batches, for which TensorFlow does not look for the best number of threads.

    Where several devices share batches, what looks for it sleeps for as long as it has run, up to a minute, and the end
    of a training waits for it. Without it there is a thread for each core.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def _weights(places: tf.Tensor, count: tf.Tensor, batch_size: int, images: int | None) -> tf.Tensor:
    """Returns the weights of some images of a batch, of which the first `count` are real."""
    fixed = math.ceil(images / batch_size) / images if images else None
    return tf.where(places < count, fixed or 1.0 / tf.cast(count, tf.float32), 0.0)
