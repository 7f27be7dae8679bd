"""Hard attention to the task: each task opens some units of one network, and may not change what others need (Serra,
Suris, Miron and Karatzoglou, ICML 2018; arXiv 1801.01423).

Each unit `i` of a layer is multiplied by a gate (section 2.2)

    a_i = sigmoid(s * e_i)

with the embedding `e`, learned for each task from N(0, 1) on. Within each epoch, `s` rises from `1 / s_max` in the
first step to `s_max` in the last (equation 3), so that gates end as good as open or closed. Since little gradient
passes through such a gate, that of `e` is multiplied by (section 2.5)

    s_max / s * (cosh(s * e) + 1) / (cosh(e) + 1)

with `|s * e|` taken as 50 where it is larger; `e` stays within 6. Let A be 1 for the units that a task before has open.
The loss has a term that keeps units for later tasks, over all layers together (equations 5 and 6)

    lambda * sum((1 - A) * a) / sum(1 - A)

The gradient of a weight from unit `i` to unit `j` is multiplied by `1 - min(A_j, A_i)` (equation 2), that of a bias by
`1 - A_j`. Batch norm is that of the base, and never trained.

Outside of training a gate is open where `e > 0` and closed elsewhere, which is the limit of the sigmoid. So A is 0 or
1, weights that earlier tasks need get no gradient at all, and nothing that is learned later changes their answers. One
bit of each unit would be enough to keep; the memory has a byte.

A gate stands at the end of each chain of kernel, batch norm and activation; in a residual network that is in front of
the addition. A at the input of a kernel follows from the graph: activations with f(0) = 0, padding and pooling keep
channels at 0, an addition has a channel at 0 if all of its inputs have. Where a closed gate is not sure to leave zeros,
as behind a batch norm that follows an addition or a concatenation, A_i is 1, which keeps more weights than necessary.

The reference implementation trains with SGD at 0.05 without momentum and batches of 64; in proportion, the rate is
0.025 for the batches of 32 here. There is no weight decay, which moves weights whose gradient is 0, too. The
paper trains from random weights. From a pretrained base, gates that are half closed at the start cost what the base
knows; `hat_mean` above 0 starts with more of them open.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.backbones.endpoints import Endpoint
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.parts.memory import Arrays, Memory, split_off_head
from piggyback_tf.methods.parts.units import GATED_LAYERS, UnitGraph
from piggyback_tf.problems import read_spec
from piggyback_tf.settings.methods.hat import LARGEST_EMBEDDING, HATConfig
from piggyback_tf.surgery import (
    PACKAGE,
    DerivedKernels,
    all_arrays,
    assign_arrays,
    copy_layers,
    derived_layers,
    generator,
    own_arrays,
)

LARGEST_EXPONENT = 50.0  # Of `s * e` in the compensation of gradients.


@tf.custom_gradient
def attention(embedding: tf.Tensor, steepness: tf.Tensor, largest: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
    """Returns gates `sigmoid(steepness * embedding)`, whose gradient is compensated for the steepness (section 2.5).

    Args:
        embedding: `e`, float32 `[units]`.
        steepness: `s`, a scalar, which gets no gradient.
        largest: `s_max`, a scalar, which gets no gradient.
    """
    exponent = steepness * embedding

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        # The derivative of the sigmoid, s / (2 (cosh(s e) + 1)), and the compensation, as one formula: the product of
        # both has no 0 times infinity. Where cosh is infinite, the gradient is 0.
        clipped = tf.clip_by_value(exponent, -LARGEST_EXPONENT, LARGEST_EXPONENT)
        kept = (tf.cosh(clipped) + 1.0) / (tf.cosh(exponent) + 1.0)
        return upstream * kept * largest / (2.0 * (tf.cosh(embedding) + 1.0)), None, None

    return tf.sigmoid(exponent), gradient


class HeldKernel(DerivedKernels):
    """Computes as ever; training changes no weight that leads from a live input to a held unit, and no held bias.

    Attributes:
        held: Which units earlier tasks have open, bool `[units]`; None if there are no earlier tasks.
    """

    _live: np.ndarray | None = None
    held: np.ndarray | None = None

    def hold(self, live: np.ndarray, held: np.ndarray) -> None:
        """Sets what training leaves as it is.

        Args:
            live: Which input channels can be other than 0 for earlier tasks, bool `[input channels]`.
            held: Which units earlier tasks have open, bool `[units]`.
        """
        self._live, self.held = live, held

    def held_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what says of a weight whether its input is live, and of its unit whether that is held.

        Training leaves a weight as it is where both are True. Both are bool, and can be broadcast to the last two axes
        of the kernel.
        """
        live, held = self._live, self.held
        if isinstance(self, keras.layers.DepthwiseConv2D):
            return live[:, None], held.reshape(len(live), -1)
        groups = getattr(self, "groups", 1)
        if groups == 1:
            return live[:, None], held
        # A unit of a convolution in groups reads the channels of its group only.
        return np.repeat(live.reshape(groups, -1), len(held) // groups, axis=0).T, held

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the kernel, with what training leaves as it is as constants."""
        if self.held is None or not self.held.any():
            return kernel
        # Combined in the graph, which would have to hold a number for each weight otherwise.
        return tf.where(tf.logical_and(*self.held_weights()), tf.stop_gradient(kernel), kernel)

    @property
    def bias(self) -> tf.Tensor | None:
        """The bias, with what training leaves as it is as constants."""
        if self._bias is None:
            return None
        bias = tf.convert_to_tensor(self._bias.value)
        return bias if self.held is None else tf.where(self.held, tf.stop_gradient(bias), bias)

    @bias.setter
    def bias(self, variable: keras.Variable | None) -> None:
        self._bias = variable


HELD_LAYERS = derived_layers(HeldKernel, "Held", GATED_LAYERS)


class LearnedGates(keras.layers.Layer):
    """Multiplies units by gates that are learned.

    Input and output shape: `[..., units]`.

    Args:
        steepness: The variable `s`, one for all layers.
        largest: `s_max`.
        free: Which units no earlier task has open, float32 `[units]`.
        weight: Weight of the sum of their gates in the loss.
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, steepness: tf.Variable, largest: float, free: np.ndarray, weight: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.steepness = steepness
        self._largest, self._free, self._weight = largest, free, weight

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.embedding = self.add_weight(
            shape=(input_shape[-1],),
            initializer="zeros",
            dtype="float32",
            autocast=False,
            constraint=lambda value: keras.ops.clip(value, -LARGEST_EMBEDDING, LARGEST_EMBEDDING),
            name="embedding",
        )

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        embedding = tf.convert_to_tensor(self.embedding.value)
        if not training:
            return inputs * tf.cast(embedding > 0, inputs.dtype)
        gates = attention(embedding, tf.convert_to_tensor(self.steepness), tf.constant(self._largest))
        self.add_loss(self._weight * tf.reduce_sum(gates * self._free))
        return inputs * tf.cast(gates, inputs.dtype)


@keras.saving.register_keras_serializable(package=PACKAGE)
class Gates(keras.layers.Layer):
    """Lets units through whose gate is open; the others become 0. Input and output shape: `[..., units]`."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.open = self.add_weight(
            shape=(input_shape[-1],), initializer="ones", dtype="bool", autocast=False, trainable=False, name="open"
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.cast(self.open.value, inputs.dtype)


class GateInsertion:
    """Calls the layers of a network and puts gates behind some of them.

    Args:
        gates: What is applied to what a layer returns, by the layer's name.
    """

    def __init__(self, gates: Mapping[str, keras.layers.Layer]):
        self._gates = gates

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        gate = self._gates.get(layer.name) if isinstance(layer, keras.layers.Layer) else None
        return outputs if gate is None else gate(outputs)


class Annealing(keras.callbacks.Callback):
    """Sets the steepness of gates for each step of an epoch (equation 3).

    Args:
        steepness: The variable.
        largest: `s_max`, its value in the last step; `1 / s_max` in the first.
    """

    def __init__(self, steepness: tf.Variable, largest: float):
        super().__init__()
        self._steepness = steepness
        self._largest = largest

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        steps, smallest = self.params["steps"], 1.0 / self._largest
        done = batch / (steps - 1) if steps > 1 else 1.0
        self._steepness.assign(smallest + (self._largest - smallest) * done)


@METHODS.register("hat")
class HAT(Method):
    """Trains weights and gates of one network, and holds the weights between units that earlier tasks have open."""

    Config = HATConfig
    config: HATConfig
    makes_pack = False
    plain_networks = False
    sequential = True
    replaces_base = True
    # Plain SGD hardly moves a head of zeros on features that gates have damped, and gates and weights get no gradient.
    own_head_init = "glorot"

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        graph = UnitGraph(backbone.model)
        held = held_units(self.memory, graph)
        free = {path: 1.0 - units.astype(np.float32) for path, units in held.items()}
        weight = self.config.hat_lambda / max(1.0, sum(float(units.sum()) for units in free.values()))
        # Not a weight of the model, since it follows from the step.
        steepness = tf.Variable(self.config.hat_smax, trainable=False, dtype=tf.float32, name="steepness")
        gates = {
            last: LearnedGates(steepness, self.config.hat_smax, free[path], weight, name=_gates_of(path))
            for last, path in graph.gate_of.items()
        }

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            return HELD_LAYERS.get(type(layer), type(layer)), {"trainable": type(layer) in HELD_LAYERS}

        model, _ = copy_layers(backbone.model, settings_of, GateInsertion(gates))
        arrays = dict(self.memory.shared if self.memory.tasks else all_arrays(backbone.model))
        for path, units in graph.units.items():
            name = f"{_gates_of(path)}/embedding"
            start = self.config.hat_mean + generator(seed, name).standard_normal(units)
            arrays[name] = np.clip(start, -LARGEST_EMBEDDING, LARGEST_EMBEDDING).astype(np.float32)
        assign_arrays(model, arrays)
        if self.memory.tasks:
            live = graph.live_inputs(held)
            for path, layer in held_layers(model).items():
                layer.hold(live[path], held[path])
        return model

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        steepness = next(layer.steepness for _, layer in named_layers(model) if isinstance(layer, LearnedGates))
        return [Annealing(steepness, self.config.hat_smax)]

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del backbone, images
        own, arrays = split_off_head(own_arrays(model))
        for path in held_layers(model):
            own[f"{_gates_of(path)}/open"] = arrays.pop(f"{_gates_of(path)}/embedding") > 0
        if self.memory.tasks:
            self._check_held(arrays, held_layers(model))
        return self.memory.with_task(task, own, shared=arrays, head=read_spec(model))

    def recall(self, backbone: Backbone, task: str) -> keras.Model:
        def copied(model: keras.Model) -> keras.Model:
            gates = {last: Gates(name=_gates_of(path)) for last, path in UnitGraph(model).gate_of.items()}
            return copy_layers(model, lambda layer: (type(layer), {}), GateInsertion(gates))[0]

        return self.recalled(backbone, task, self.memory.shared, copied)

    def head_endpoints(self, network: Backbone, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        # Behind the gates: what is in front of them changes with later tasks.
        graph = UnitGraph(network.model)
        if inside := [endpoint.layer for endpoint in endpoints if endpoint.layer in graph.inside_of_chains]:
            raise ValueError(
                f"The head builds on the output of layer {inside[0]!r}, whose units HAT gates further on; name the "
                "layer behind which the gates stand as the endpoint, or use another method, such as piggyback."
            )
        gates = {last: _gates_of(path) for last, path in graph.gate_of.items()}
        return [dataclasses.replace(each, layer=gates.get(each.layer, each.layer)) for each in endpoints]

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        return "adapter" if isinstance(layer, LearnedGates) else super().variable_group(path, layer)

    def _check_held(self, arrays: Arrays, layers: Mapping[str, HeldKernel]) -> None:
        """Refuses what was trained with something, such as weight decay, that changed what earlier tasks need."""
        for path, before in self.memory.shared.items():
            layer, _, name = path.rpartition("/")
            held = np.ones((), bool)
            if layer in layers:
                held = np.logical_and(*layers[layer].held_weights()) if name == "kernel" else layers[layer].held
            if ((arrays[path] != before) & held).any():
                raise ValueError(
                    f"The training changed {path!r} where earlier tasks need it; train without weight decay, and only "
                    "what is trainable."
                )


def held_layers(model: keras.Model) -> dict[str, HeldKernel]:
    """Returns the layers of a model of HAT that have gates, by canonical path."""
    return {path: layer for path, layer in named_layers(model) if isinstance(layer, HeldKernel)}


def held_units(memory: Memory, graph: UnitGraph) -> dict[str, np.ndarray]:
    """Returns which units any learned task has open, bool `[units]` by the canonical path of their layer."""
    held = {path: np.zeros(units, bool) for path, units in graph.units.items()}
    for own in memory.own.values():
        for path in held:
            held[path] |= own[f"{_gates_of(path)}/open"]
    return held


def _gates_of(path: str) -> str:
    """Returns the name of the gates of a layer's units."""
    return f"{path}_gates"
