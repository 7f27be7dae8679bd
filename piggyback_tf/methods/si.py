"""Synaptic intelligence (Zenke, Poole and Ganguli, ICML 2017; arXiv 1703.04200).

One network learns task after task. While it learns one, each weight gathers how much its own steps lowered the loss
(equations 1 to 3): with the gradient `g` of the labels' loss alone and the step that the optimiser took,

    omega = - sum over steps of g * step

A weight matters for the task as much as it lowered the loss for the square of its way (equation 5)

    Omega = omega / ((weight at the end - weight at the start) ** 2 + xi)

and the next task's loss is (equation 4)

    loss of the labels + c * sum over weights of Omega * (weight - old) ** 2

with `old`, the weights after the task before, and Omega summed over all tasks so far. As in the authors' code a sum
below 0 counts as 0, or moving the weight would be rewarded.

The task ends at its best epoch: `omega` is a weight of the model, of which that epoch has its own. The steps are those
that were taken, whatever the optimiser. They are as small as the rates are. Here xi is far below the paper's 0.1 and
0.001, beside which the ways of a pretrained network would vanish. With c 0 the method is `finetune_sequential`, whose
optimisers and schedule it has; the paper's are for small networks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.added_loss import AddedLoss, ExtendedModel, no_term
from piggyback_tf.methods.parts.held_network import HeldNetwork
from piggyback_tf.methods.parts.importance import penalised_variables
from piggyback_tf.methods.parts.memory import Arrays
from piggyback_tf.methods.parts.separate_gradients import PassingLayer, separate_step, summed
from piggyback_tf.settings.methods.si import SIConfig

GATHERED_NAME = "gathered"


class Gathered(PassingLayer):
    """Holds what the steps of each weight lowered the loss by, `omega`, 0 at the start.

    Args:
        shapes: The shape of each weight, by canonical path.
        **kwargs: As for `keras.layers.Layer`.

    Attributes:
        omega: The sums, float32, by the path of the weight.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], **kwargs: Any):
        super().__init__(**kwargs)
        self._shapes = shapes
        self.omega: dict[str, keras.Variable] = {}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        del input_shape
        for path, shape in self._shapes.items():
            self.omega[path] = self.add_weight(
                shape=shape,
                initializer="zeros",
                dtype="float32",
                autocast=False,
                trainable=False,
                # All devices take the same step.
                aggregation="only_first_replica",
                name=path.replace("/", "."),
            )


class GatheringModel(ExtendedModel):
    """A functional model with a layer `Gathered`, in which each training step adds what it lowered the loss by."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return separate_step(self, data, self.take_step)

    def take_step(
        self, variables: Sequence[keras.Variable], own: Sequence[tf.Tensor], added: Sequence[tf.Tensor] | None
    ) -> None:
        """Steps as ever, and gathers; see `TakeStep`."""
        omega = self.get_layer(GATHERED_NAME).omega
        paths = {id(variable): path for path, variable in named_variables(self).items()}
        steps = [
            (omega[paths[id(variable)]], variable, tf.identity(variable.value), gradient)
            for variable, gradient in zip(variables, own, strict=True)
            if paths[id(variable)] in omega
        ]
        # In half precision the optimiser scales losses, and may change by how much after each step.
        scale = tf.identity(self.optimizer.scale_loss(tf.ones([])))
        gradients = own if added is None else [one + other for one, other in zip(own, added, strict=True)]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        gradients = summed([gradient for *_, gradient in steps])
        for (total, variable, before, _), gradient in zip(steps, gradients, strict=True):
            # A step with infinite gradients is then not taken.
            total.assign_sub(tf.math.multiply_no_nan(gradient / scale, variable.value - before))


@METHODS.register("si")
class SI(HeldNetwork):
    """Trains one network on task after task, and holds the weights that lowered the loss of earlier ones."""

    Config = SIConfig
    config: SIConfig
    extended_model = GatheringModel

    @property
    def strength(self) -> float:
        return self.config.si_strength

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        network = super().feature_model(backbone, seed)
        shapes = {path: tuple(variable.shape) for path, variable in penalised_variables(network).items()}
        return keras.Model(network.input, Gathered(shapes, name=GATHERED_NAME)(network.output), name=network.name)

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        # The first task has none, and gathers.
        return super().added_loss(model, backbone) or no_term

    def importance(self, model: keras.Model, backbone: Backbone, images: Iterable[Any]) -> Arrays:
        del images
        base, found = named_variables(backbone.model), {}
        for path, total in model.get_layer(GATHERED_NAME).omega.items():
            start = self.memory.shared[path] if self.memory.tasks else _array(base[path])
            way = _array(named_variables(model)[path]) - start
            found[path] = _array(total) / (np.square(way) + np.float32(self.config.si_damping))
        return found


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
