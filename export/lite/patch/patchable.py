"""A base.tflite whose constants tasks change: made by conversion, or read again from an export."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from piggyback_tf.backbones import Backbone

from ...edge.piggyback_edge import Entry, Manifest
from ..checks import check_features
from ..convert import convert
from ..flatbuffer import LiteFile, Span, pack_objects, read_objects, separate_buffers
from ..metadata import TASK_NAME, add_metadata, add_task_place
from ..weights import Network, Weights
from .calibrate import Ranges, corresponding, find_ranges, move_constants, quantise
from .constants import (
    BIAS,
    FACTOR,
    FILTER,
    HEAD_BIAS_ROLE,
    HEAD_KERNEL_ROLE,
    OFFSET,
    Constant,
    identify,
)
from .elements import Encoder, bias_elements, filter_inputs, write_constants, write_elements
from .manifest import KIND_CODES

_FIELDS = ("role", "kernel", "norm", "order", "extra", "bias")
Tasks = Callable[[], Iterator[tuple[Weights, np.ndarray]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """An entry of the manifest, and what it is made of.

    Attributes:
        entry: The entry.
        constant: The constant that it belongs to.
        part: `data`, or the constant's `scales` or `zeros`.
    """

    entry: Entry
    constant: Constant
    part: str

    def to_json(self) -> dict[str, Any]:
        """Returns what `manifest.json` holds of it besides the entry."""
        constant = dataclasses.asdict(self.constant)
        return {"part": self.part} | {name: constant[name] for name in _FIELDS if constant[name] not in (None, ())}


@dataclasses.dataclass(frozen=True, eq=False)
class Patchable:
    """A base.tflite with its constants.

    Attributes:
        file: The file, with the base's own weights.
        network: The base.
        constants: What tasks change, by the number of the tensor.
        manifest: The manifest.
        slots: For each entry of the manifest what it is made of.
    """

    file: LiteFile
    network: Network
    constants: dict[int, Constant]
    manifest: Manifest
    slots: tuple[Slot, ...]

    @functools.cached_property
    def encoder(self) -> Encoder:
        """What makes elements of weights."""
        return Encoder(self.file, self.constants, self.network)

    @classmethod
    def make(cls, backbone: Backbone, network: Network, quantize: str, max_classes: int, tasks: Tasks) -> "Patchable":
        """Converts a base.

        Args:
            backbone: The base.
            network: The same.
            quantize: One of `QUANTIZATIONS`.
            max_classes: 0, or for how many classes the graph has a head.
            tasks: Yields for each task all its weights, and images; called for int8.

        Raises:
            ValueError: If what conversion makes of the base cannot be patched.
        """
        file, constants = make_float_file(backbone, network, "none" if quantize == "int8" else quantize)
        if quantize == "int8":
            marked = bytes(file.data)
            if not max_classes:
                write_constants(file, constants, network, network.weights)
                check_features(file.data, backbone, "none")
            ranges = find_ranges(file, constants, network, tasks())
            file, constants = _quantised(file, marked, ranges, constants, backbone, network)
        write_constants(file, constants, network, network.weights)
        return cls.of(file, network, constants, backbone, quantize, max_classes)

    @classmethod
    def of(
        cls,
        file: LiteFile,
        network: Network,
        constants: list[Constant],
        backbone: Backbone,
        quantize: str,
        max_classes: int,
    ) -> "Patchable":
        """Returns a base of which the file is ready."""
        slots = sorted(
            (slot for constant in constants for slot in _slots(file, constant, network)), key=lambda s: s.entry.offset
        )
        check_apart(file, constants)
        place = file.metadata.get(TASK_NAME)
        manifest = Manifest(
            base_size=len(file.data),
            base_sha256=hashlib.sha256(file.data).digest(),
            base_hash=bytes.fromhex(backbone.hash),
            features=backbone.feature_dim,
            max_classes=max_classes,
            image_size=backbone.image_size,
            quantize=quantize,
            entries=tuple(slot.entry for slot in slots),
            task_place=0 if place is None else place.offset,
        )
        return cls(file, network, {constant.tensor: constant for constant in constants}, manifest, tuple(slots))


def make_float_file(backbone: Backbone, network: Network, quantize: str) -> tuple[LiteFile, list[Constant]]:
    """Returns a file with marked weights, and which of its constants tasks change."""
    marks = network.marked()
    file = _with_places(convert(backbone, marks, quantize), backbone)
    return file, identify(file, network, marks)


def _with_places(content: bytes, backbone: Backbone) -> LiteFile:
    """Returns a converted file with metadata, a place that says which task is on it, and a buffer for each constant."""
    model = read_objects(content)
    add_metadata(model, backbone.name, backbone.preprocessing)
    add_task_place(model)
    separate_buffers(model)
    return LiteFile(pack_objects(model))


def constants_from_json(entries: list[Mapping[str, Any]], file: LiteFile, network: Network) -> list[Constant]:
    """Returns the constants that `Slot.to_json` described.

    Raises:
        KeyError, TypeError, ValueError: If it did not, or not those of this file and network.
    """
    constants = [
        Constant(entry["tensor"], **{name: entry[name] for name in _FIELDS if name in entry} | _order(entry))
        for entry in entries
        if entry["part"] == "data"
    ]
    tensors = {tensor.index: tensor for tensor in file.constants()}
    for constant in constants:
        tensor = tensors.get(constant.tensor)
        if tensor is None or not _is_known(constant, network) or _size(constant, network) != tensor.data.count:
            raise ValueError(f"the constant of tensor {constant.tensor!r} is none of this base")
    return constants


def _is_known(constant: Constant, network: Network) -> bool:
    """Returns whether what a constant is said to be made of is in a network."""
    kernel, norm = network.kernels.get(constant.kernel), network.norms.get(constant.norm)
    if norm is None and (constant.norm is not None or constant.role in (BIAS, FACTOR, OFFSET)):
        return False
    if constant.role == FILTER:
        return kernel is not None and sorted(constant.order) == list(range(len(kernel.shape)))
    return constant.role in (BIAS, FACTOR, OFFSET, HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE)


def _size(constant: Constant, network: Network) -> int:
    return constant.value(network, network.weights).size


def _order(entry: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {"order": tuple(entry["order"])} if "order" in entry else {}


def _quantised(
    file: LiteFile, marked: bytes, ranges: Ranges, constants: list[Constant], backbone: Backbone, network: Network
) -> tuple[LiteFile, list[Constant]]:
    """Returns an int8 file, and its constants; biases that no task changes are those of the base."""
    new = _with_places(quantise(marked, ranges), backbone)
    pairs = corresponding(file, new)
    moved = move_constants(constants, pairs)
    encoder = Encoder(new, {constant.tensor: constant for constant in moved}, network)
    for operator in file.computing():
        _, kernel, bias = filter_inputs(operator)
        target = new.tensors[pairs[bias]] if bias >= 0 else None
        # The converter chose the scales of biases by marked filters.
        fixed = target is not None and target.data is not None and target.index not in encoder.constants
        if fixed and pairs[kernel] in encoder.constants and target.data.dtype == np.int32:
            scales = encoder.bias_scales(target.index, network.weights)
            write_elements(new, target, bias_elements(file.floats(file.tensors[bias]), scales))
    return new, moved


def _slots(file: LiteFile, constant: Constant, network: Network) -> Iterator[Slot]:
    """Yields the entries of a constant."""
    tensor = file.tensors[constant.tensor]
    kind = KIND_CODES[constant.role]
    quantised_filter = constant.role == FILTER and tensor.data.dtype == np.int8
    channels, inner = constant.channels(network) if constant.role == FILTER else (1, 1)
    scales = (tensor.scales.offset, tensor.scales.count) if quantised_filter else (0, 0)
    data = Entry(kind, tensor.data.dtype, tensor.data.offset, tensor.data.count, channels, inner, tensor.index, *scales)
    yield Slot(data, constant, "data")
    # A filter without batch norm of its own keeps its scales under every task.
    if tensor.scales is None or (constant.role == FILTER and constant.norm is None):
        return
    yield Slot(_entry("scales", tensor.scales, tensor.index), constant, "scales")
    if constant.role in (FACTOR, OFFSET) and tensor.data.dtype == np.int8:
        yield Slot(_entry("zeros", tensor.zeros, tensor.index), constant, "zeros")


def _entry(kind: str, span: Span, tensor: int) -> Entry:
    return Entry(KIND_CODES[kind], span.dtype, span.offset, span.count, 1, 1, tensor)


def check_apart(file: LiteFile, constants: list[Constant]) -> None:
    """Fails if a constant shares its bytes with another tensor.

    Raises:
        ValueError: With the first one.
    """
    owners: dict[int, int] = {}
    for tensor in file.constants():
        owners[tensor.buffer] = owners.get(tensor.buffer, 0) + 1
    for constant in constants:
        if owners[file.tensors[constant.tensor].buffer] > 1:
            raise ValueError(f"Tensor {file.tensors[constant.tensor].name!r} shares its bytes with another one.")
