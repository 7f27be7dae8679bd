"""Which constant of a .tflite file is made of which weights of the base: found by marked weights."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from piggyback_tf.problems import is_head

from ..flatbuffer import LiteFile, Tensor
from ..weights import HEAD_BIAS, HEAD_KERNEL, Kernel, Network, Weights

FILTER, BIAS, FACTOR, OFFSET, HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE, VECTOR = (
    "filter",
    "bias",
    "factor",
    "offset",
    "head kernel",
    "head bias",
    "vector",
)
# The orders of dimensions that LiteRT keeps kernels in, by what they are made of.
_ORDERS = {4: ((3, 0, 1, 2), (0, 1, 2, 3), (2, 0, 1, 3)), 2: ((1, 0), (0, 1))}
# How much a constant may differ from what it is made of, as a share of its length: by its element type.
_TOLERANCE = {"f4": 1e-4, "f2": 2e-3, "i1": 2e-2}


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant that tasks change.

    Attributes:
        tensor: The number of its tensor.
        role: What it is.
        kernel: The path of the kernel of a filter, or of the one whose bias it is; else None.
        norm: The path of the batch norm layer that is a part of it; None if there is none.
        order: The order of the kernel's dimensions in a filter.
        extra: What a filter is multiplied by besides batch norm.
        bias: The path of a bias that is a part of it, or of the vector that it is; None if there is none.
    """

    tensor: int
    role: str
    kernel: str | None = None
    norm: str | None = None
    order: tuple[int, ...] = ()
    extra: float = 1.0
    bias: str | None = None

    @property
    def of_head(self) -> bool:
        """Whether it belongs to a task's head, and each task brings its own."""
        paths = (self.kernel, self.norm, self.bias)
        return self.role in (HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE) or any(path and is_head(path) for path in paths)

    def value(self, network: Network, weights: Weights) -> np.ndarray:
        """Returns what the constant is for some weights, float32 in the order of its elements, `[n]`."""
        if self.role == HEAD_KERNEL_ROLE:
            return np.ascontiguousarray(weights[HEAD_KERNEL].T).reshape(-1)
        if self.role == HEAD_BIAS_ROLE:
            return weights[self.bias or HEAD_BIAS]
        if self.role == VECTOR:
            return weights[self.bias]
        norm = network.norms.get(self.norm)
        if self.role == FACTOR:
            return norm.factor(weights)
        if self.role != FILTER:
            offset = norm.offset(weights)
            return offset if self.bias is None else offset + weights[self.bias] * norm.factor(weights)
        kernel = network.kernels[self.kernel]
        value = weights[self.kernel]
        if norm is not None:
            value = value * kernel.channel_view(norm.factor(weights))
        if self.extra != 1.0:
            value = value * np.float32(self.extra)
        return np.ascontiguousarray(value.transpose(self.order)).reshape(-1)

    def channels(self, network: Network) -> tuple[int, int]:
        """Returns how many channels a filter has, and how many elements of one lie side by side."""
        if self.role == HEAD_KERNEL_ROLE:
            features, classes = network.weights[HEAD_KERNEL].shape
            return classes, features
        if self.role != FILTER:
            return 1, 1
        kernel = network.kernels[self.kernel]
        last = max(self.order.index(axis) for axis in kernel.outputs)
        return kernel.channels, int(np.prod([kernel.shape[axis] for axis in self.order[last + 1 :]], dtype=np.int64))


def identify(file: LiteFile, network: Network, marks: Weights) -> list[Constant]:
    """Returns the constants of a file that was converted with marked weights, in the order of its tensors.

    Args:
        file: The file, with float32, float16 or dynamic-range quantised constants.
        network: The base.
        marks: The marked weights; see `Network.marked`.

    Raises:
        ValueError: If the constants of a kernel or a batch norm layer were not found.
    """
    weights = network.weights | dict(marks)
    by_size: dict[int, list[Kernel]] = {}
    for kernel in network.kernels.values():
        by_size.setdefault(weights[kernel.path].size, []).append(kernel)
    found: dict[int, Constant] = {}
    for tensor in file.constants():
        if tensor.data.dtype.str[1:] not in _TOLERANCE:
            continue
        value = file.floats(tensor)
        tolerance = _TOLERANCE[tensor.data.dtype.str[1:]]
        filters = (
            _filter(tensor, value, kernel, network, weights, tolerance) for kernel in by_size.get(value.size, ())
        )
        constant = next((each for each in filters if each is not None), None)
        if constant is None:
            candidates = _vectors(tensor.index, network, weights)
            constant = next(
                (c for c, mark in candidates if mark.size == value.size and _near(value, mark, tolerance)), None
            )
        if constant is not None:
            found[tensor.index] = constant
    _check_found(found, network)
    return list(found.values())


def _filter(
    tensor: Tensor, value: np.ndarray, kernel: Kernel, network: Network, weights: Weights, tolerance: float
) -> Constant | None:
    """Returns a constant as one that is made of a kernel, None if it is not."""
    for order in _ORDERS[len(kernel.shape)]:
        shape = [kernel.shape[axis] for axis in order]
        back = np.argsort(order)
        seen = value.reshape(shape).transpose(back)
        others = tuple(axis for axis in range(seen.ndim) if axis not in kernel.outputs)
        mark = weights[kernel.path]
        # The factors of channels that come nearest, and what they leave.
        factors = (seen * mark).sum(axis=others) / np.maximum((mark * mark).sum(axis=others), 1e-30)
        if not _near(seen, mark * kernel.channel_view(factors), tolerance):
            continue
        factors = factors.reshape(-1)
        for norm in (None, *network.norms.values()):
            expected = np.ones(kernel.channels, np.float32) if norm is None else norm.factor(weights)
            if expected.size != factors.size:
                continue
            extra = float(np.dot(factors, expected) / np.dot(expected, expected))
            if extra and _near(factors, extra * expected, tolerance):
                extra = 1.0 if abs(extra - 1) < tolerance else extra
                path = None if norm is None else norm.path
                return Constant(tensor.index, FILTER, kernel.path, path, order, extra)
    return None


def _vectors(index: int, network: Network, weights: Weights) -> Iterator[tuple[Constant, np.ndarray]]:
    """Yields all that a constant could be but a filter, with its marked value."""
    if HEAD_KERNEL in weights:
        for role in (HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE):
            constant = Constant(index, role)
            yield constant, constant.value(network, weights)
    for kernel in network.kernels.values():
        # Those of the base are the same for all tasks.
        if kernel.bias is not None and is_head(kernel.path):
            constant = Constant(index, HEAD_BIAS_ROLE, bias=kernel.bias)
            yield constant, constant.value(network, weights)
    for path in network.vectors:
        yield Constant(index, VECTOR, bias=path), weights[path]
    for norm in network.norms.values():
        biases = {kernel.bias for kernel in network.kernels.values() if kernel.bias is not None}
        for constant in (Constant(index, FACTOR, norm=norm.path), Constant(index, OFFSET, norm=norm.path)):
            yield constant, constant.value(network, weights)
        for bias in biases:
            if weights[bias].size == norm.offset(weights).size:
                constant = Constant(index, BIAS, norm=norm.path, bias=bias)
                yield constant, constant.value(network, weights)


def _near(value: np.ndarray, expected: np.ndarray, tolerance: float) -> bool:
    """Returns whether two arrays differ by less than a share of the length of the second."""
    return float(np.linalg.norm((value - expected).reshape(-1))) <= tolerance * float(np.linalg.norm(expected))


def _check_found(found: dict[int, Constant], network: Network) -> None:
    """Fails unless every kernel and batch norm layer was found."""
    kernels = {constant.kernel for constant in found.values() if constant.role == FILTER}
    if missing := [path for path in network.kernels if path not in kernels]:
        raise ValueError(
            f"Conversion leaves no constant that is kernel {missing[0]!r} alone, so that it cannot be patched; "
            "use --design=switch or --design=input."
        )
    factors = {constant.norm for constant in found.values() if constant.role in (FILTER, FACTOR)}
    offsets = {constant.norm for constant in found.values() if constant.role in (BIAS, OFFSET)}
    if missing := [path for path in network.norms if path not in factors & offsets]:
        raise ValueError(
            f"Conversion mixes batch norm {missing[0]!r} with other constants, so that it cannot be patched; use "
            "--design=switch or --design=input."
        )
    biases = {kernel.bias for kernel in network.kernels.values() if kernel.bias and is_head(kernel.path)}
    if missing := sorted(biases - {constant.bias for constant in found.values() if constant.bias is not None}):
        raise ValueError(f"Conversion leaves no constant that is {missing[0]!r} of the head; use --design=plain.")
    if missing := [path for path in network.vectors if path not in {each.bias for each in found.values()}]:
        raise ValueError(
            f"Conversion mixes {missing[0]!r} with other constants, so that a task's own cannot be put in its place; "
            "use --design=plain."
        )
    if HEAD_KERNEL in network.weights and not {HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE} <= {c.role for c in found.values()}:
        raise ValueError("Conversion leaves no constants that are the head alone; export without --max_classes.")
