"""Elastic weight consolidation (Kirkpatrick et al., PNAS 114, 2017; arXiv 1612.00796).

One network learns task after task. What the earlier tasks need is held by a quadratic penalty (equation 3): with the
weights `old` after a task and the diagonal `F` of the Fisher information there, the next task's loss is

    cross-entropy + lambda / 2 * sum over weights of F * (weight - old) ** 2

With several earlier tasks the penalties of all of them are summed. Online (Schwarz et al., Progress and Compress, ICML
2018; after Huszar, PNAS 115, 2018) there is one penalty, around the latest weights, with the running sum
`F = decay * F + F of the latest task`, which takes the same room however many tasks there are.

Penalised are all weights of the network that are trained, biases too, and gamma and beta with `norm="task"`. Heads are
not: each task has its own. The moving statistics of batch norm are no parameters of the loss and have no gradient; with
`norm_statistics="task"` they follow the latest task unhindered.

F is the mean over single images and the cross-entropy the mean over a batch. Other implementations sum one of them, so
that their lambdas are not comparable. With lambda 0 the method is `finetune_sequential`, whose optimisers and schedule
it has; the paper's are for small perceptrons.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.importance import (
    check_remembered,
    mean_over_images,
    penalised_variables,
    quadratic_penalty,
    sample_images,
)
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.methods.parts.shared_network import SharedNetwork
from piggyback_tf.settings.methods.ewc import EWCConfig


@METHODS.register("ewc")
class EWC(SharedNetwork):
    """Trains one network on task after task, and holds the weights that earlier tasks need."""

    Config = EWCConfig
    config: EWCConfig

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        sample = sample_images(images, self.config.ewc_fisher_images)
        # The empirical Fisher information, with the labels of the data in place of labels that the network draws.
        fisher = mean_over_images(model, penalised_variables(model), sample, _cross_entropy, tf.square)
        memory = super().remember(model, backbone, task, [])
        kept, number = dict(self.memory.learning), len(self.memory.tasks)
        if self.config.ewc_online:
            number = 0
            if kept:
                fisher = {path: self.config.ewc_decay * kept[f"0/fisher/{path}"] + fisher[path] for path in fisher}
        for path in fisher:
            kept |= {f"{number}/fisher/{path}": fisher[path], f"{number}/weights/{path}": memory.shared[path]}
        return dataclasses.replace(memory, learning=kept)

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        """Returns what computes `lambda / 2 * sum of F * (weight - old) ** 2`, from what is remembered."""
        del backbone
        if not self.memory.tasks:
            return None
        variables, learning = penalised_variables(model), self.memory.learning
        numbers = range(1 if self.config.ewc_online else len(self.memory.tasks))
        keys = {f"{number}/{part}/{path}" for number in numbers for part in ("fisher", "weights") for path in variables}
        check_remembered(keys, learning, "--norm and --ewc_online")
        terms = [
            (variable, learning[f"{number}/fisher/{path}"], learning[f"{number}/weights/{path}"])
            for number in numbers
            for path, variable in variables.items()
        ]
        return quadratic_penalty(0.5 * self.config.ewc_lambda, terms)


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
