"""What methods share that have one network for all tasks, changed by each new one, and a head for each task."""

from collections.abc import Iterable
from typing import Any

import keras

from piggyback_tf.backbones import Backbone, batch_norm_paths, named_variables
from piggyback_tf.heads import HEAD_NAME, add_classification_head
from piggyback_tf.methods.base import Method, trained_norm
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.settings.methods import TrainedNetworkConfig
from piggyback_tf.surgery import assign_arrays, copy_of_base, own_arrays


def trainable_network(backbone: Backbone, config: TrainedNetworkConfig) -> keras.Model:
    """Returns a trainable copy of a backbone's network, with batch norm as the settings say.

    Raises:
        ValueError: If batch norm is to be trained and there is none.
    """
    if config.norm == "task" and not batch_norm_paths(backbone.model):
        raise ValueError(f"Backbone {backbone.name!r} has no batch normalisation to train; use norm='frozen'.")
    return copy_of_base(backbone.model, trained_norm(config) if config.norm == "task" else None)


class SharedNetwork(Method):
    """A method with one network for all tasks: the weights after the last task are those of every task."""

    Config = TrainedNetworkConfig
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
        arrays, paths = own_arrays(model), named_variables(backbone.model).keys()
        head = {f"{HEAD_NAME}/{name}": arrays[f"{HEAD_NAME}/{name}"] for name in ("kernel", "bias")}
        return self.memory.with_task(task, head, shared={path: arrays[path] for path in paths})

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        head = self.memory.of(task)
        model = add_classification_head(copy_of_base(backbone.model), self.memory.classes(task))
        assign_arrays(model, {**self.memory.shared, **head})
        return model
