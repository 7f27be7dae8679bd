"""Dynamically expandable networks: units that a task changes too much become two, and some are added (Yoon, Yang, Lee
and Hwang, ICLR 2018; arXiv 1708.01547).

One network learns task after task. A new task goes through these steps, each a phase of the training:

1. Selecting: the head is trained alone, and kept sparse: each step shrinks its weights towards 0 by `den_sparsity` of
   its rate (the proximal step of an L1 penalty, equation 2 of the paper).
2. Retraining (algorithm 2): from the features that the head uses, the units that they are made of are found, down to
   the first layer, and only the weights between such units are trained. In the paper a connection counts where it is
   not 0. A pretrained network has no zeros: here it counts from `den_connect` of the unit's strongest one on.
3. Expanding (algorithm 3): if the validation loss is above `den_loss` then, each layer gets `den_units` more units, and
   only weights from or to them are trained. Each step shrinks what leads to a new unit by a part of its length, by
   `den_group` of the rate times the root of its size (the proximal step of equation 4). A unit that came to 0 is
   removed. Otherwise retraining goes on. The paper asks for the training loss.
4. Splitting (algorithm 4): a unit whose weights moved by more than `den_split` of their length becomes two. The old one
   gets its old weights back, and the copy keeps the new ones. The paper's limit is no part of the length.

Each unit lives from the task that brought it on, as the time stamps of the paper say, and until a task replaces it by a
copy. A task computes with the units that live in it. So splitting changes no answer of the new task, and the paper's
training behind it is not needed. Earlier tasks have their old weights back where units were split, and elsewhere
weights that moved by at most `den_split`: their answers drift. With `den_split=0` they do not.

The first task fine-tunes the base, which the paper keeps sparse. Batch norm is the base's, and does nothing to new
units. The network is a chain of dense layers and convolutions, since a unit of a residual network is added to others.
The paper's, like the authors' code, has dense layers and convolutions without batch norm.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.parts.chains import CHAINED_LAYERS, Link, Units, moved, read_chain
from piggyback_tf.methods.parts.memory import Arrays, Memory, split_off_head
from piggyback_tf.methods.parts.separate_gradients import PassingLayer
from piggyback_tf.problems import HEAD_NAME, read_spec
from piggyback_tf.settings.methods.den import DENConfig
from piggyback_tf.surgery import (
    DerivedKernels,
    all_arrays,
    assign_arrays,
    copy_layers,
    copy_of_base,
    derived_layers,
    generator,
    own_arrays,
)

GROWTH_NAME = "growth"
STAGES = ("select", "retrain", "expand")
CLOSED, FROZEN, TRAINED = 0, 1, 2
_MOST_TASKS = 255  # What a byte can number, beside 0.


class SelectedKernel(DerivedKernels):
    """Computes with a kernel of which some connections are trained, and some are closed, which counts as 0.

    Beside the kernel lies what becomes of each connection, uint8 `[inputs, units]`, and of each bias, `[units]`: one of
    `CLOSED`, `FROZEN` and `TRAINED`.

    Args:
        *args: As for the Keras layer.
        old: How many of its units, the first ones, lived before the task.
        **kwargs: As for the Keras layer.
    """

    def __init__(self, *args: Any, old: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.old = old

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        shape = self._kernel.shape[-2:]
        settings = {"initializer": "ones", "dtype": "uint8", "autocast": False, "trainable": False}
        self.connections = self.add_weight(shape=shape, name="connections", **settings)
        self.biases = self.add_weight(shape=shape[-1:], name="biases", **settings)

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        return _selected(kernel, getattr(self, "connections", None))

    @property
    def bias(self) -> tf.Tensor | None:
        """The bias, with what is not trained as constants."""
        return None if self._bias is None else _selected(self._bias.value, getattr(self, "biases", None))

    @bias.setter
    def bias(self, variable: keras.Variable | None) -> None:
        self._bias = variable

    def new_units(self) -> np.ndarray:
        """Returns which units are new and open, bool `[units]`."""
        return (_array(self.biases) == TRAINED) & (np.arange(len(_array(self.biases))) >= self.old)

    def shrink(self, rate: float) -> None:
        """Shrinks what leads to each new unit by `rate * sqrt(size)`, at most to 0, where its bias is 0, too."""
        new, kernel = self.new_units(), _array(self._kernel)
        if not new.any():
            return
        columns = kernel[..., new]
        length = np.sqrt(np.square(columns).sum(axis=tuple(range(kernel.ndim - 1))))
        step = rate * np.sqrt(columns[..., 0].size)
        kernel[..., new] = columns * np.maximum(1 - step / np.maximum(length, np.finfo(np.float32).tiny), 0)
        self._kernel.assign(kernel)
        if self._bias is not None:
            self._bias.assign(np.where(kernel.any(axis=tuple(range(kernel.ndim - 1))) | ~new, _array(self._bias), 0))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "old": self.old}


def _selected(values: tf.Tensor, states: keras.Variable | None) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    if states is None:  # Keras' `build` may look before they are there.
        return values
    state = tf.convert_to_tensor(states.value)
    fixed = tf.where(state == FROZEN, tf.stop_gradient(values), tf.zeros([], values.dtype))
    return tf.where(state == TRAINED, values, fixed)


SELECTED_LAYERS = derived_layers(SelectedKernel, "Selected", CHAINED_LAYERS)


class Growth(PassingLayer):
    """Holds which stage the training is in, and the validation loss by which the network grows or does not.

    Both are in weights, so that a training that goes on knows them.
    """

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        del input_shape
        settings = {"shape": (), "dtype": "float32", "autocast": False, "trainable": False}
        self.stage = self.add_weight(name="stage", initializer="zeros", **settings)
        self.loss = self.add_weight(name="loss", initializer=keras.initializers.Constant(np.inf), **settings)

    @property
    def stage_name(self) -> str:
        """The stage that the training is in."""
        return STAGES[int(_array(self.stage))]


class Shrinking(keras.callbacks.Callback):
    """Shrinks after each step what should not be needed, and notes the validation loss.

    Args:
        sparsity: `den_sparsity`.
        group: `den_group`.
    """

    def __init__(self, sparsity: float, group: float):
        super().__init__()
        self._sparsity, self._group = sparsity, group

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        stage = growth_of(self.model).stage_name
        if stage == "select" and self._sparsity:
            kernel = self.model.get_layer(HEAD_NAME).kernel
            value = _array(kernel)
            kernel.assign(np.sign(value) * np.maximum(np.abs(value) - self._sparsity * self._rate("head"), 0))
        if stage == "expand" and self._group:
            rate = self._group * self._rate("weights")
            for layer in selected_layers(self.model).values():
                layer.shrink(rate)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        # Before the state of the epoch is saved, which is at the end of the epoch.
        growth = growth_of(self.model)
        if growth.stage_name == "retrain":
            growth.loss.assign(float((logs or {})["loss"]))

    def _rate(self, group: str) -> float:
        """Returns the learning rate of a group of variables."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        return next(float(inner.learning_rate) for inner in optimizer.optimizers if inner.name == group)


@METHODS.register("den")
class DEN(Method):
    """Retrains what a task needs of one network, adds units to it, and splits those that would change too much."""

    Config = DENConfig
    config: DENConfig
    makes_pack = False
    sequential = True
    keeps_old_tasks = False
    replaces_base = True

    def check_room(self, backbone: Backbone, tasks: int) -> None:
        read_chain(backbone.model)
        if tasks > _MOST_TASKS:
            raise ValueError(f"DEN learns at most {_MOST_TASKS} tasks, since a byte names the task of a unit.")

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        self.check_room(backbone, self._task)
        if not self.memory.tasks:
            return copy_of_base(backbone.model)
        units, links = self._units(backbone), read_chain(backbone.model)
        arrays = units.network(self._task - 1)
        model = _resized(backbone.model, links, arrays, self.config.den_units, trained=True)
        found = {**all_arrays(model), **_rest(self.memory.shared, links)}
        for path, array in arrays.items():
            found[path][tuple(slice(side) for side in array.shape)] = array
        for path in selected_layers(model):
            kernel, old = found[f"{path}/kernel"], arrays[f"{path}/kernel"].shape
            # What leads from new units to old ones starts at 0.
            kernel[..., old[-2] :, : old[-1]] = 0
            scale = np.sqrt(2 / np.prod(kernel.shape[:-1]))
            shape = (*kernel.shape[:-1], kernel.shape[-1] - old[-1])
            kernel[..., old[-1] :] = scale * generator(seed, f"{path}/kernel").standard_normal(shape)
            states = np.full(kernel.shape[-2:], CLOSED, np.uint8)
            states[: old[-2], : old[-1]] = FROZEN
            found[f"{path}/connections"] = states
            found[f"{path}/biases"] = np.where(np.arange(kernel.shape[-1]) < old[-1], FROZEN, CLOSED).astype(np.uint8)
        assign_arrays(model, found)
        return keras.Model(model.input, Growth(name=GROWTH_NAME)(model.output), name=model.name)

    def phases(self, epochs: int) -> tuple[int, ...]:
        if epochs < len(STAGES):
            raise ValueError(
                f"DEN needs at least {len(STAGES)} epochs, to select, to retrain and to expand. Received: "
                f"epochs={epochs}."
            )
        if not self.memory.tasks:
            return (epochs,)
        select = max(1, round(epochs / 5))
        retrain = max(1, (epochs - select) // 2)
        return select, retrain, epochs - select - retrain

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        if not self.memory.tasks:
            return model
        growth_of(model).stage.assign(phase)
        layers = selected_layers(model)
        if STAGES[phase] == "retrain":
            used = (_array(model.get_layer(HEAD_NAME).kernel) != 0).any(axis=1)
            for layer in reversed(layers.values()):
                used = self._select(layer, used)
        elif STAGES[phase] == "expand" and self.config.den_units and self._grows(model):
            for layer in layers.values():
                for states in (layer.connections, layer.biases):
                    opened = np.where(_array(states) == CLOSED, TRAINED, FROZEN)
                    states.assign(opened.astype(np.uint8))
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        del model
        return [Shrinking(self.config.den_sparsity, self.config.den_group)] if self.memory.tasks else []

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del images
        links = read_chain(backbone.model)
        head, arrays = split_off_head(own_arrays(model))
        if not self.memory.tasks:
            shared = {**_rest(arrays, links), **Units.of(links, arrays).written()}
            return self.memory.with_task(task, head, shared=shared, head=read_spec(model))
        units, layers = self._units(backbone), selected_layers(model)
        drift = moved(units, self._task, arrays)
        brought = {}
        for path, layer in layers.items():
            is_used = arrays[f"{path}/kernel"].any(axis=tuple(range(arrays[f"{path}/kernel"].ndim - 1)))
            brought[path] = (layer.new_units() & is_used)[layer.old :]
        replaced = {path: way > self.config.den_split for path, way in drift.items()}
        units, order = units.grown(self._task, arrays, brought, replaced)
        head[f"{HEAD_NAME}/kernel"] = head[f"{HEAD_NAME}/kernel"][order]
        shared = {**_rest(self.memory.shared, links), **units.written()}
        return self.memory.with_task(task, head, shared=shared, head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        self.memory.of(task)  # It says so if the task was not learned.
        links = read_chain(backbone.model)
        arrays = self._units(backbone).network(self.memory.tasks.index(task) + 1)
        return self.recalled(
            backbone,
            task,
            {**_rest(self.memory.shared, links), **arrays},
            lambda network: _resized(network, links, arrays),
        )

    @property
    def _task(self) -> int:
        """Number of the task that is learned next."""
        return len(self.memory.tasks) + 1

    def _units(self, backbone: Backbone) -> Units:
        return Units.read(read_chain(backbone.model), self.memory.shared)

    def _select(self, layer: SelectedKernel, used: np.ndarray) -> np.ndarray:
        """Trains the connections between used units of a layer and units before that matter to them.

        Args:
            layer: The layer.
            used: Which of its units are used, bool `[units]`.

        Returns:
            Which units before it are.
        """
        states, kernel = _array(layer.connections), _array(layer._kernel)
        strength = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 2)))) * (states != CLOSED)
        counts = (strength > 0) & (strength >= self.config.den_connect * strength.max(axis=0))
        before = (counts & used).any(axis=1)
        for variable, chosen in ((layer.connections, before[:, None] & used), (layer.biases, used)):
            states = _array(variable)
            variable.assign(np.where(chosen & (states != CLOSED), TRAINED, states).astype(np.uint8))
        return before

    def _grows(self, model: keras.Model) -> bool:
        return float(_array(growth_of(model).loss)) > self.config.den_loss


def growth_of(model: keras.Model) -> Growth:
    """Returns the stage and the loss of a model of DEN for a later task."""
    return model.get_layer(GROWTH_NAME)


def selected_layers(model: keras.Model) -> dict[str, SelectedKernel]:
    """Returns the layers of a model of DEN whose connections are selected, by canonical path, the first one first."""
    return {path: layer for path, layer in named_layers(model) if isinstance(layer, SelectedKernel)}


def _resized(
    network: keras.Model, links: list[Link], arrays: Arrays, more: int = 0, trained: bool = False
) -> keras.Model:
    """Returns the chain with as many units as arrays have, and more, without the values of its weights.

    Args:
        network: The chain.
        links: Its links.
        arrays: Kernels by canonical path.
        more: How many more units each link has.
        trained: Whether its layers select connections.
    """
    widths = {link.path: arrays[f"{link.path}/kernel"].shape[-1] + more for link in links}
    width_of = {id(layer): widths[path] for path, layer in named_layers(network) if path in widths}

    def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict[str, Any]]:
        if id(layer) not in width_of:
            return type(layer), {"trainable": False}
        size = "filters" if isinstance(layer, keras.layers.Conv2D) else "units"
        width = width_of[id(layer)]
        if trained:
            return SELECTED_LAYERS[type(layer)], {size: width, "old": width - more, "trainable": True}
        return type(layer), {size: width}

    return copy_layers(network, settings_of)[0]


def _rest(arrays: Arrays, links: list[Link]) -> dict[str, np.ndarray]:
    """Returns the arrays of layers in front of the first link, which are those of the base."""
    own = {name for link in links for name in (link.path, *link.norms)}
    return {path: array for path, array in arrays.items() if path.rpartition("/")[0] not in own}


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))
