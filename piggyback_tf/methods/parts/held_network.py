"""What methods share that hold the weights of one network by a single importance, summed over the tasks so far."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.importance import check_remembered, penalised_variables, quadratic_penalty
from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.methods.parts.shared_network import SharedNetwork


class HeldNetwork(SharedNetwork):
    """One network for all tasks, with the loss

        that of the new task + strength * sum over weights of importance * (weight - old) ** 2

    `old` are the weights after the task before. The importance is the sum of those that `importance` returned after
    each task, and 0 where the sum is below that. It is kept under the paths of the weights, which takes the same room
    however many tasks there are.

    Penalised are all weights of the network that are trained, biases too, and gamma and beta with `norm="task"`. Heads
    are not: each task has its own. The moving statistics of batch norm are no parameters of the loss.
    """

    @property
    @abc.abstractmethod
    def strength(self) -> float:
        """The weight of the penalty in the loss."""

    @abc.abstractmethod
    def importance(self, model: keras.Model, backbone: Backbone, images: Iterable[Any]) -> Arrays:
        """Returns how much each penalised weight matters for the task that was learned, float32 by canonical path.

        Args:
            model: What `build` returned, trained.
            backbone: The network it was built on.
            images: As for `remember`.
        """

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        found, earlier = self.importance(model, backbone, images), self.memory.learning
        memory = super().remember(model, backbone, task, [])
        total = {path: found[path] + earlier[path] if earlier else found[path] for path in found}
        return dataclasses.replace(memory, learning={path: np.maximum(total[path], 0) for path in total})

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        """Returns what computes the penalty, from what is remembered."""
        del backbone
        if not self.memory.tasks:
            return None
        variables, memory = penalised_variables(model), self.memory
        check_remembered(variables, memory.learning, "--norm")
        terms = [(variable, memory.learning[path], memory.shared[path]) for path, variable in variables.items()]
        return quadratic_penalty(self.strength, terms)
