"""What methods share that have one network for all tasks, changed by each new one, and a head for each task."""

from collections.abc import Iterable
from typing import Any

import keras

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.methods.base import Method, trained_norm
from piggyback_tf.methods.parts.memory import Memory, split_off_head
from piggyback_tf.problems import read_spec
from piggyback_tf.settings.methods import TrainedNetworkConfig
from piggyback_tf.surgery import assign_arrays, check_has_batch_norm, copy_of_base, own_arrays


def trainable_network(backbone: Backbone, config: TrainedNetworkConfig) -> keras.Model:
    """Returns a trainable copy of a backbone's network, with batch norm as the settings say.

    Raises:
        ValueError: If batch norm is to be trained and there is none.
    """
    if config.norm == "frozen":
        return copy_of_base(backbone.model)
    check_has_batch_norm(backbone.model)
    return copy_of_base(backbone.model, trained_norm(config))


class SharedNetwork(Method):
    """A method with one network for all tasks: the weights after the last task are those of every task."""

    Config = TrainedNetworkConfig
    config: TrainedNetworkConfig
    makes_pack = False
    sequential = True
    keeps_old_tasks = False
    replaces_base = True

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        network = trainable_network(backbone, self.config)
        if self.memory.tasks:
            assign_arrays(network, self.memory.shared)
        return network

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del images
        head, arrays = split_off_head(own_arrays(model))
        shared = {path: arrays[path] for path in named_variables(backbone.model)}
        return self.memory.with_task(task, head, shared=shared, head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        return self.recalled(backbone, task, self.memory.shared)
