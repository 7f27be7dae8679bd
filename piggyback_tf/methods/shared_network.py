"""What methods share that have one network for all tasks, changed by each new one, and a head for each task."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras

from piggyback_tf.backbones import Backbone, batch_norm_paths, named_variables
from piggyback_tf.heads import HEAD_NAME, add_classification_head
from piggyback_tf.methods.base import Method, NormConfig, assign_arrays, copy_of_base, option, own_arrays
from piggyback_tf.methods.memory import Memory


@dataclasses.dataclass(frozen=True)
class TrainedNetworkConfig(NormConfig):
    """Settings of methods that train the network itself."""

    norm: str = option("frozen", "Batch norm of the backbone. frozen: as it is; task: trained for each task.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm not in ("frozen", "task"):
            raise ValueError(f"`norm` must be 'frozen' or 'task'. Received: norm={self.norm!r}.")


def trainable_network(backbone: Backbone, config: TrainedNetworkConfig) -> keras.Model:
    """Returns a trainable copy of a backbone's network, with batch norm as the settings say.

    Raises:
        ValueError: If batch norm is to be trained and there is none.
    """
    if config.norm == "task" and not batch_norm_paths(backbone.model):
        raise ValueError(f"Backbone {backbone.name!r} has no batch normalisation to train; use norm='frozen'.")
    return copy_of_base(backbone.model, config.trained_norm if config.norm == "task" else None)


class SharedNetwork(Method):
    """A method with one network for all tasks: the weights after the last task are those of every task."""

    Config = TrainedNetworkConfig
    makes_pack = False
    trains = ("weights", "norm", "head")
    sequential = True
    keeps_old_tasks = False
    replaces_base = True

    def features(self, backbone: Backbone, seed: int) -> keras.Model:
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
