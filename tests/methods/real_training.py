"""Training tasks one after another from Python, and parts of the digits as tasks."""

import dataclasses

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Subset, TaskData, load_data, make_dataset
from piggyback_tf.evaluation import evaluate
from piggyback_tf.methods import Memory, Method
from piggyback_tf.training import InputConfig, TrainConfig, train_task


def train_and_remember(method: Method, backbone: Backbone, task: str, data: TaskData, config: TrainConfig) -> Memory:
    """Trains a task as the commands do and returns the memory with it."""
    inputs = InputConfig().for_size(backbone.image_size)
    trained = train_task(method, backbone, data, config, inputs)
    images = make_dataset(data.train, inputs.augment_eval, batch_size=config.batch_size, training=False)
    return method.remember(trained.model, backbone, task, images)


def error_of(network: keras.Model, data: TaskData) -> float:
    """Returns the error of a network on the test split, in percent."""
    size = network.input_shape[1]
    dataset = make_dataset(data.test, f"resize({size},{size})", batch_size=64, training=False)
    return evaluate(tf.function(lambda images: network(images, training=False)), dataset)["top1_error"]


def digits_task(first: int, last: int, images: int) -> TaskData:
    """Returns a task of the digits from one to another, with so many training images."""
    data = load_data(f"digits:{first}-{last}")
    return dataclasses.replace(data, train=Subset(data.train, range(images)))
