"""Units of a network: behind which layer each can have a gate, and where a closed gate leaves nothing but zeros.

A unit is an output channel of a layer with a kernel: a filter of a convolution, a neuron of a dense layer.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones import is_batch_norm, is_container, named_layers
from piggyback_tf.backbones.paths import calls_of
from piggyback_tf.surgery import foreign_kernels

Units = Mapping[str, np.ndarray]

# The exact classes whose units can have gates.
GATED_LAYERS: tuple[type[keras.layers.Layer], ...] = (
    keras.layers.Dense,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
)
# Activations that compute each number from itself alone.
ELEMENTWISE = frozenset(
    keras.activations.get(name)
    for name in (
        *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "silu", "gelu", "mish", "hard_silu"),
        *("tanh", "softsign", "hard_tanh", "sigmoid", "hard_sigmoid", "log_sigmoid", "softplus", "exponential"),
    )
)
_ACTIVATIONS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
# Layers without weights that make zeros of channels of zeros, and keep channels apart.
_KEEP_ZEROS = (
    keras.layers.AveragePooling2D,
    keras.layers.Dropout,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.MaxPooling2D,
    keras.layers.SpatialDropout2D,
    keras.layers.ZeroPadding2D,
)


class UnitGraph:
    """The graph of a functional network, as far as its units are concerned.

    A gate stands where the chain kernel layer, batch norm, activation ends: in front of whatever does not treat
    channels one by one, such as the addition of a residual network or the next kernel, and of whatever forks.

    Args:
        model: A functional network; not changed.

    Attributes:
        units: The number of units of each layer with a kernel, by canonical path.
        gate_of: By the path of the layer behind which a gate stands, that of the layer whose units it opens.
        inside_of_chains: The paths of the layers from one with a kernel on, up to the one in front of the gate's.

    Raises:
        ValueError: If the network cannot have gates; the sentence says where and why.
    """

    def __init__(self, model: keras.Model):
        self._nodes = calls_of(model)
        self._paths = {id(layer): path for path, layer in named_layers(model)}
        self._check(model)
        self._readers: dict[int, list[Any]] = {}
        for node in self._nodes:
            for tensor in node.input_tensors:
                self._readers.setdefault(id(tensor), []).append(node)
        self._results = {id(tensor) for tensor in model.outputs}
        self.units: dict[str, int] = {}
        self.gate_of: dict[str, str] = {}
        self.inside_of_chains: set[str] = set()
        for node in self._nodes:
            if type(node.operation) in GATED_LAYERS:
                path = self._paths[id(node.operation)]
                self.units[path] = node.output_tensors[0].shape[-1]
                self.gate_of[self._end_of_chain(node)] = path

    def live_inputs(self, live: Units) -> dict[str, np.ndarray]:
        """Returns which input channels of each layer with a kernel can be other than 0.

        Args:
            live: Which units of each layer with a kernel have an open gate: bool `[units]` by canonical path.

        Returns:
            Bool `[input channels]` by canonical path. False is certain; True is where nothing is known.
        """
        of_tensor: dict[int, np.ndarray] = {}
        found = {}
        for node in self._nodes:
            path = self._paths.get(id(node.operation), "")
            inputs = [of_tensor[id(tensor)] for tensor in node.input_tensors]
            if path in self.units:
                found[path] = inputs[0]
            for tensor in node.output_tensors:
                of_tensor[id(tensor)] = (
                    live[self.gate_of[path]] if path in self.gate_of else _after(node.operation, inputs, tensor.shape)
                )
        return found

    def _end_of_chain(self, node: Any) -> str:
        """Returns the path of the last layer from a node on that treats channels one by one and is read only once."""
        while True:
            (tensor,) = node.output_tensors
            readers = self._readers.get(id(tensor), [])
            if id(tensor) in self._results or len(readers) != 1 or not _is_channelwise(readers[0].operation, tensor):
                return self._paths[id(node.operation)]
            self.inside_of_chains.add(self._paths[id(node.operation)])
            node = readers[0]

    def _check(self, model: keras.Model) -> None:
        layers = dict(named_layers(model))
        if foreign := foreign_kernels(layers, GATED_LAYERS):
            raise ValueError(
                f"These layers have kernels whose units HAT cannot gate: {foreign}. It gates those of "
                f"{', '.join(kind.__name__ for kind in GATED_LAYERS)}; use another backbone, or another method, such "
                "as piggyback."
            )
        for layer in model.layers:
            if is_container(layer):
                raise ValueError(
                    f"HAT cannot put gates into nested models, such as {layer.name!r}; use another "
                    "backbone, or another method."
                )
        for path, layer in layers.items():
            if getattr(layer, "data_format", None) == "channels_first":
                raise ValueError(f"HAT needs data_format='channels_last'; layer {path!r} has 'channels_first'.")
            if type(layer) in GATED_LAYERS and layer.activation not in ELEMENTWISE:
                raise ValueError(
                    f"HAT cannot gate the units of layer {path!r}: its activation is not known to compute each from "
                    "itself alone; put it into a layer of its own behind this one."
                )
        operations = [node.operation for node in self._nodes]
        for operation in operations:
            if operations.count(operation) > 1:
                raise ValueError(
                    f"HAT needs layers that occur once; {operation.name!r} occurs {operations.count(operation)} times."
                )


def _is_elementwise(operation: Any) -> bool:
    if type(operation) is keras.layers.Activation:
        return operation.activation in ELEMENTWISE
    return type(operation) in _ACTIVATIONS


def _is_channelwise(operation: Any, tensor: keras.KerasTensor) -> bool:
    """Whether an operation with weights that are not trained computes each channel of a tensor from itself alone."""
    if is_batch_norm(operation):
        return operation.axis in (-1, len(tensor.shape) - 1)
    return _is_elementwise(operation)


def keeps_zeros(operation: Any) -> bool:
    """Whether an operation without weights leaves channels of zeros at zero."""
    elementwise = _is_elementwise(operation) and float(operation(np.zeros((1, 1)))[0, 0]) == 0.0
    return type(operation) in _KEEP_ZEROS or elementwise


def _after(operation: Any, inputs: list[np.ndarray], shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns which channels behind an operation can be other than 0, from which can in front of it."""
    channels = shape[-1] or 1
    kind = type(operation)
    if keeps_zeros(operation):
        return inputs[0]
    if kind is keras.layers.Flatten:
        return np.tile(inputs[0], channels // len(inputs[0]))
    if kind is keras.layers.Add and all(len(one) == channels for one in inputs):
        return np.logical_or.reduce(inputs)
    if kind is keras.layers.Concatenate and operation.axis in (-1, len(shape) - 1):
        return np.concatenate(inputs)
    return np.ones(channels, bool)
