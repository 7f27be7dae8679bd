"""From weights to the elements of constants: float32, float16, or integers with scales."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..flatbuffer import LiteFile, Operator, Span, Tensor
from ..weights import Network, Weights
from .constants import BIAS, FACTOR, FILTER, HEAD_KERNEL_ROLE, OFFSET, Constant

_FLOAT16_MAX = 65504.0
# How much a weight in float16 may differ, which is rounded twice where batch norm is a task's own: as a share of
# itself, and of the largest weight of its channel (half a step of int8), and a step of the smallest numbers.
_FLOAT16_ROUNDING, _FLOAT16_CHANNEL, _FLOAT16_STEP = 2e-3, 4e-3, 2.0**-24
_INT8_MAX = 127
# The largest number of a bias in int32; LiteRT adds the products of a filter to it, and the converter leaves as much.
_BIAS_MAX = 2**30
# What float32 adds to a bias or its scale, which is a product of two, as a share of it.
BIAS_ROUNDING = 1e-5
# For each filter that tasks do not replace, without its tensor, by what its channels' scales are multiplied.
Widening = Mapping[Constant, np.ndarray]


class ElementError(ValueError):
    """A value that a constant's type cannot hold; the message is a sentence."""


class BiasError(ElementError):
    """A bias that does not fit into int32 in multiples of its input's scale times its filter's."""


@dataclasses.dataclass(frozen=True)
class Elements:
    """What a constant holds; scales and zero points are None where its type has none."""

    data: np.ndarray
    scales: np.ndarray | None = None
    zeros: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """Turns weights into the elements of a file's constants.

    Attributes:
        file: The file; its types and its activations' scales are looked at.
        constants: The constants by the number of their tensor.
        network: The base.
        widening: By what scales of filters are larger than those of their numbers, under the base and every task, since
            a bias would not fit into int32 otherwise.
        composed: The paths of kernels whose filters have other numbers than the base's, and scales for these.
    """

    file: LiteFile
    constants: Mapping[int, Constant]
    network: Network
    widening: Widening = dataclasses.field(default_factory=dict)
    composed: frozenset[str] = frozenset()

    def encode(self, constant: Constant, weights: Weights) -> Elements:
        """Returns the elements of a constant for some weights; filters get the scales of these weights.

        Raises:
            ElementError: If a number is not finite, or too large for the type and scale.
        """
        tensor, value = self.file.tensors[constant.tensor], constant.value(self.network, weights)
        if not np.isfinite(value).all():
            raise ElementError(f"{describe_constant(constant)} holds numbers that are not finite.")
        kind = tensor.data.dtype.str[1:]
        if kind == "f4":
            return Elements(value)
        if kind == "f2":
            if np.abs(value).max(initial=0) > _FLOAT16_MAX:
                raise ElementError(
                    f"{describe_constant(constant)} holds {np.abs(value).max():.3g}, too large for float16."
                )
            return Elements(value.astype(np.float16))
        if kind == "i4":
            scales = self.bias_scales(constant.tensor, weights)
            _check_bias(constant, value, scales)
            return bias_elements(value, scales)
        if constant.role in (FILTER, HEAD_KERNEL_ROLE):
            scales = self.filter_scales(constant, weights)
            return Elements(_quantised(value, self._spread(constant, scales), _INT8_MAX, np.int8), scales)
        return _asymmetric(value)

    def filter_scales(self, constant: Constant, weights: Weights) -> np.ndarray:
        """Returns the scales of a filter for some weights, float32: one for each channel, or one."""
        scales, needed = self.fitting_scales(constant, weights), self.needed_scales(constant, weights)
        if constant.of_head or constant.kernel in self.composed:
            return np.maximum(scales, needed)
        wider = scales * self.widening.get(without_tensor(constant), np.float32(1))
        return np.where(self._largest(constant, weights) > 0, wider, np.maximum(scales, needed))

    def file_scales(self, constant: Constant) -> np.ndarray:
        """Returns the scales that a constant has in the file, float32; none if it is no integer."""
        span = self.file.tensors[constant.tensor].scales
        return np.zeros(0, np.float32) if span is None else self.file.read(span)

    def fitting_scales(self, constant: Constant, weights: Weights) -> np.ndarray:
        """Returns the scales with which the numbers of a filter fit into int8, whatever its bias needs."""
        most = self._largest(constant, weights)
        # A channel of zeros has any scale that the runtime takes.
        free = self._harmless_scale(constant) if constant.of_head and constant.role == FILTER else np.float32(1)
        return np.where(most > 0, most / np.float32(_INT8_MAX), free).astype(np.float32)

    def _largest(self, constant: Constant, weights: Weights) -> np.ndarray:
        """Returns the largest number of each channel of a filter, or of all; 0 if the runtime has no such scale."""
        value, (channels, inner) = constant.value(self.network, weights), constant.channels(self.network)
        most = np.abs(value.reshape(-1, channels, inner)).max(axis=(0, 2))
        if self.file.tensors[constant.tensor].scales.count == 1:
            most = most.max(keepdims=True)
        return np.where(most < _INT8_MAX * np.finfo(np.float32).tiny, np.float32(0), most)

    def needed_scales(self, constant: Constant, weights: Weights) -> np.ndarray:
        """Returns the least scales of a filter with which its bias fits into int32, in the shape of its scales."""
        needed = np.zeros(self.file.tensors[constant.tensor].scales.count, np.float32)
        for data, kernel, bias in map(filter_inputs, self.file.operators):
            tensor = self.file.tensors[bias] if bias >= 0 else None
            if kernel != constant.tensor or tensor is None or tensor.data is None or tensor.data.dtype != np.int32:
                continue
            added = self.constants.get(bias)
            value = self.file.doubles(tensor) if added is None else added.value(self.network, weights)
            least = np.abs(value) / (_BIAS_MAX * self.file.steps(self.file.tensors[data]))
            needed = np.maximum(needed, least if needed.size > 1 else least.max())
        return needed.astype(np.float32)

    def _harmless_scale(self, constant: Constant) -> np.float32:
        """Returns a scale for the zeros of a head's filter, with which products are in multiples of the output's scale.

        Until a task is installed, all of a head is zeros. With a scale of 1 for them, on maps that are far smaller,
        XNNPACK in ai-edge-litert 2.3 crashed when it read the model, though another graph was to be run.
        """
        for operator in self.file.operators:
            data, kernel, _ = filter_inputs(operator)
            if kernel != constant.tensor:
                continue
            tensors = [self.file.tensors[index] for index in (data, operator.outputs[0])]
            if all(tensor.scales is not None for tensor in tensors):
                taken, given = (self.file.read(tensor.scales)[0] for tensor in tensors)
                return np.float32(given / taken)
        return np.float32(1)

    def bias_scales(self, bias: int, weights: Weights) -> np.ndarray:
        """Returns the scales of a quantised bias: those of its filter for these weights, times that of the input."""
        inputs, kernel = next(
            (data, kernel) for data, kernel, each in map(filter_inputs, self.file.operators) if each == bias
        )
        factor = self.file.read(self.file.tensors[inputs].scales)[0]
        if kernel in self.constants:
            return factor * self.filter_scales(self.constants[kernel], weights)
        return factor * self.file.read(self.file.tensors[kernel].scales)

    def _spread(self, constant: Constant, scales: np.ndarray) -> np.ndarray:
        """Returns the scale of each element of a filter, in a shape that divides its values `[n]`."""
        channels, inner = constant.channels(self.network)
        size = self.file.tensors[constant.tensor].data.count
        if scales.size == 1:
            return scales
        return np.tile(np.repeat(scales, inner), size // (channels * inner))


def filter_inputs(operator: Operator) -> tuple[int, int, int]:
    """Returns the numbers of the tensors of an operator's data, filter and bias; -1 for those that it has not."""
    data, filter_, bias, fourth = (*operator.inputs, -1, -1, -1, -1)[:4]
    if operator.code == schema.BuiltinOperator.TRANSPOSE_CONV:
        return bias, filter_, fourth
    known = (
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
        schema.BuiltinOperator.FULLY_CONNECTED,
    )
    return (data, filter_, bias) if operator.code in known else (-1, -1, -1)


def bias_elements(value: np.ndarray, scales: np.ndarray) -> Elements:
    """Returns the elements of a bias with these scales, one for each number or one for all."""
    return Elements(np.rint(value / scales.astype(np.float64)).astype(np.int32), scales.astype(np.float32))


def _check_bias(constant: Constant, value: np.ndarray, scales: np.ndarray) -> None:
    """Raises a `BiasError` if a bias does not fit into int32, of which a part is left for the products."""
    steps = np.abs(value) / scales.astype(np.float64)
    if steps.max(initial=0) > _BIAS_MAX * (1 + BIAS_ROUNDING):
        channel = int(steps.argmax())
        raise BiasError(
            f"{describe_constant(constant)} holds {value[channel]:.3g} in channel {channel}, too large for int32 in "
            f"multiples of {np.broadcast_to(scales, value.shape)[channel]:.3g}, which its input and its filter give."
        )


def without_tensor(constant: Constant) -> Constant:
    """Returns what a constant is made of, which is the same for equal ones of several tensors and graphs."""
    return dataclasses.replace(constant, tensor=-1)


def float16_tolerance(constant: Constant, network: Network, weights: Weights) -> np.ndarray:
    """Returns how much a constant in float16 may differ from what it stands for, float64 `[n]`.

    Args:
        constant: The constant.
        network: The base.
        weights: All weights of a task, without masks.
    """
    value = np.abs(constant.value(network, weights).astype(np.float64))
    channels, inner = constant.channels(network)
    by_channel = value.reshape(-1, channels, inner)
    most = np.broadcast_to(by_channel.max(axis=(0, 2), keepdims=True), by_channel.shape).reshape(-1)
    return _FLOAT16_ROUNDING * value + _FLOAT16_CHANNEL * most + 2 * _FLOAT16_STEP


def describe_constant(constant: Constant) -> str:
    """Returns what a constant is, for errors."""
    names = {FILTER: constant.kernel, BIAS: constant.norm, FACTOR: constant.norm, OFFSET: constant.norm}
    return (
        f"The {constant.role} {names.get(constant.role) or ''!r}" if constant.role in names else f"The {constant.role}"
    )


def write_elements(file: LiteFile, tensor: Tensor, elements: Elements) -> None:
    """Writes a constant, and scales and zero points if it has some."""
    for span, values in elements_of(tensor, elements):
        file.write(span, values)


def write_constants(encoder: Encoder, weights: Weights) -> None:
    """Writes all constants that tasks change as they are for some weights."""
    for constant in encoder.constants.values():
        tensor = encoder.file.tensors[constant.tensor]
        write_elements(encoder.file, tensor, encoder.encode(constant, weights))


def elements_of(tensor: Tensor, elements: Elements) -> list[tuple[Span, np.ndarray]]:
    """Returns the parts of a file that a constant takes, with what belongs there."""
    parts = [(tensor.data, elements.data)]
    if elements.scales is not None:
        parts.append((tensor.scales, elements.scales))
    if elements.zeros is not None:
        parts.append((tensor.zeros, elements.zeros))
    return parts


def _quantised(value: np.ndarray, scales: np.ndarray, most: int, dtype: type) -> np.ndarray:
    return np.clip(np.rint(value / scales.astype(np.float64)), -most, most).astype(dtype)


def _asymmetric(value: np.ndarray) -> Elements:
    """Returns int8 elements with one scale and zero point, in whose range is 0."""
    low, high = min(0.0, float(value.min())), max(0.0, float(value.max()))
    scale = np.float32((high - low) / 255) if high > low else np.float32(1)
    zero = int(np.clip(np.rint(-128 - low / scale), -128, 127))
    data = np.clip(np.rint(value / np.float64(scale)) + zero, -128, 127).astype(np.int8)
    return Elements(data, np.array([scale], np.float32), np.array([zero], np.int64))
