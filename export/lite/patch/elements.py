"""From weights to the elements of constants: float32, float16, or integers with scales."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..flatbuffer import LiteFile, Operator, Span, Tensor
from ..weights import Network, Weights
from .constants import BIAS, FACTOR, FILTER, HEAD_KERNEL_ROLE, OFFSET, Constant

_FLOAT16_MAX = 65504.0
# How much a weight in float16 may differ, which is rounded twice where batch norm is a task's own: as a share of
# itself, and of the largest weight of its channel (half a step of int8), and a step of the smallest numbers.
_FLOAT16_ROUNDING, _FLOAT16_CHANNEL, _FLOAT16_STEP = 2e-3, 4e-3, 2.0**-24
_INT8_MAX, _INT32_MAX = 127, 2**31 - 1


class ElementError(ValueError):
    """A value that a constant's type cannot hold."""


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
    """

    file: LiteFile
    constants: Mapping[int, Constant]
    network: Network

    def encode(self, constant: Constant, weights: Weights) -> Elements:
        """Returns the elements of a constant for some weights; filters get the scales of these weights.

        Raises:
            ElementError: If a number is not finite, or too large for the type.
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
            return bias_elements(value, self.bias_scales(constant.tensor, weights))
        if constant.role in (FILTER, HEAD_KERNEL_ROLE):
            scales = self.filter_scales(constant, value)
            return Elements(_quantised(value, self._spread(constant, scales), _INT8_MAX, np.int8), scales)
        return _asymmetric(value)

    def filter_scales(self, constant: Constant, value: np.ndarray) -> np.ndarray:
        """Returns the scales of a filter with these values, float32: one for each channel, or one."""
        channels, inner = constant.channels(self.network)
        most = np.abs(value.reshape(-1, channels, inner)).max(axis=(0, 2))
        if self.file.tensors[constant.tensor].scales.count == 1:
            most = most.max(keepdims=True)
        # A channel of zeros has any scale that the runtime takes.
        free = self._harmless_scale(constant) if constant.of_head and constant.role == FILTER else np.float32(1)
        return np.where(most > 0, most / np.float32(_INT8_MAX), free).astype(np.float32)

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
            constant = self.constants[kernel]
            return factor * self.filter_scales(constant, constant.value(self.network, weights))
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
    return Elements(_quantised(value, scales, _INT32_MAX, np.int32), scales.astype(np.float32))


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


def write_constants(file: LiteFile, constants: Sequence[Constant], network: Network, weights: Weights) -> None:
    """Writes all constants that tasks change as they are for some weights."""
    encoder = Encoder(file, {constant.tensor: constant for constant in constants}, network)
    for constant in constants:
        write_elements(file, file.tensors[constant.tensor], encoder.encode(constant, weights))


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
