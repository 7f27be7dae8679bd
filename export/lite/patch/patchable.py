"""A base.tflite whose constants tasks change: made by conversion, or read again from an export."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskPack

from ...edge.piggyback_edge import FIRST_SIGNATURE, Entry, Manifest, Signature
from ..checks import check_features
from ..convert import convert
from ..flatbuffer import LiteFile, Span, pack_objects, read_objects, separate_buffers
from ..kinds import check_room
from ..metadata import TASK_NAME, add_metadata, add_task_place
from ..weights import Network, Weights
from .calibrate import Ranges, common_ranges, corresponding, find_ranges, move_constants, quantise
from .constants import (
    BIAS,
    FACTOR,
    FILTER,
    HEAD_BIAS_ROLE,
    HEAD_KERNEL_ROLE,
    OFFSET,
    VECTOR,
    Constant,
    identify,
)
from .elements import Encoder, Widening, bias_elements, filter_inputs, write_constants, write_elements
from .joined import GraphPart, join, shared_between
from .manifest import KIND_CODES
from .widening import needed_widening

_FIELDS = ("role", "kernel", "norm", "order", "extra", "bias")
# Yields for each task of a network all its weights, and images.
Tasks = Callable[[Network], Iterator[tuple[Weights, np.ndarray]]]
# Yields for each task of a network that changes more than masks all its weights without masks, and the paths of the
# kernels that it composes.
Unmasked = Callable[[Network], Iterator[tuple[Weights, frozenset[str]]]]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A graph of a base.tflite, which answers tasks of one kind.

    Attributes:
        network: The base, and the head that the graph ends in.
        file: The file, with the base's own weights.
        constants: What tasks change, by the number of the tensor.
        widening: As in `Encoder`.
        composed: As in `Encoder`, for one task.
    """

    network: Network
    file: LiteFile
    constants: dict[int, Constant]
    widening: Widening = dataclasses.field(default_factory=dict)
    composed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: Network, file: LiteFile, constants: Iterable[Constant]) -> "Graph":
        """Returns the graph of constants."""
        return cls(network, file, {constant.tensor: constant for constant in constants})

    @functools.cached_property
    def encoder(self) -> Encoder:
        """What makes elements of weights."""
        return Encoder(self.file, self.constants, self.network, self.widening, self.composed)

    def write(self, weights: Weights) -> None:
        """Writes all that tasks change as it is for some weights."""
        write_constants(self.encoder, weights)


@dataclasses.dataclass(frozen=True, eq=False)
class Slot:
    """An entry of the manifest, and what it is made of.

    Attributes:
        entry: The entry.
        constants: The constant that it belongs to, by the number of each graph that it is in; they differ in the number
            of the tensor alone.
        part: `data`, or the constant's `scales` or `zeros`.
    """

    entry: Entry
    constants: dict[int, Constant]
    part: str

    @property
    def constant(self) -> Constant:
        """The constant in the first of its graphs."""
        return next(iter(self.constants.values()))

    def to_json(self) -> dict[str, Any]:
        """Returns what `manifest.json` holds of it besides the entry."""
        constant = dataclasses.asdict(self.constant)
        found = {"part": self.part} | {name: constant[name] for name in _FIELDS if constant[name] not in (None, ())}
        if list(self.constants) != [0]:
            found["tensors"] = {str(graph): each.tensor for graph, each in self.constants.items()}
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Patchable:
    """A base.tflite with its constants.

    Attributes:
        graphs: Its graphs, each for one kind of task.
        manifest: The manifest.
        slots: For each entry of the manifest what it is made of.
    """

    graphs: tuple[Graph, ...]
    manifest: Manifest
    slots: tuple[Slot, ...]

    @property
    def file(self) -> LiteFile:
        """The file, with the base's own weights."""
        return self.graphs[0].file

    def graph_of(self, pack: TaskPack) -> int:
        """Returns the number of the graph that answers a task.

        Raises:
            ExportError: If there is none, or it has too few classes.
        """
        kinds = [graph.network.kind for graph in self.graphs]
        return kinds.index(check_room(pack, kinds))

    @classmethod
    def make(
        cls, backbone: Backbone, networks: Sequence[Network], quantize: str, tasks: Tasks, unmasked: Unmasked
    ) -> "Patchable":
        """Converts a base.

        Args:
            backbone: The base.
            networks: The same, with the head of each kind of task.
            quantize: One of `QUANTIZATIONS`.
            tasks: Called for int8, with each network.
            unmasked: Called for int8, with each network.

        Raises:
            ValueError: If what conversion makes of the base cannot be patched.
        """
        kind_of_float = "none" if quantize == "int8" else quantize
        graphs = [Graph.of(network, *make_float_file(backbone, network, kind_of_float)) for network in networks]
        if quantize == "int8":
            marked = [bytes(graph.file.data) for graph in graphs]
            for graph in graphs:
                if not graph.network.kind.room:
                    graph.write(graph.network.weights)
                    check_features(graph.file.data, backbone, "none")
            ranges = [_ranges_of(graph, tasks) for graph in graphs]
            if len(graphs) > 1:
                ranges = common_ranges([(graph.file, list(graph.constants.values())) for graph in graphs], ranges)
            new = [_quantised(*each, backbone) for each in zip(graphs, marked, ranges, strict=True)]
            widening = needed_widening([graph.encoder for graph in new], list(map(unmasked, networks)))
            new = [dataclasses.replace(graph, widening=widening) for graph in new]
            for old, graph in zip(graphs, new, strict=True):
                _write_fixed_biases(old.file, graph)
            graphs = new
        for graph in graphs:
            graph.write(graph.network.weights)
        if [network.kind.signature for network in networks] != [FIRST_SIGNATURE]:
            graphs = _joined(graphs, backbone)
        return cls.of(graphs, backbone, quantize)

    @classmethod
    def of(cls, graphs: Sequence[Graph], backbone: Backbone, quantize: str) -> "Patchable":
        """Returns a base of which the file is ready."""
        slots: dict[int, Slot] = {}
        for number, graph in enumerate(graphs):
            for constant in graph.constants.values():
                for slot in _slots(graph, number, constant):
                    slots.setdefault(slot.entry.offset, slot).constants[number] = constant
        _check_apart(graphs)
        ordered = tuple(slots[offset] for offset in sorted(slots))
        first = graphs[0]
        place = first.file.metadata.get(TASK_NAME)
        kinds = [graph.network.kind for graph in graphs]
        alone = [kind.signature for kind in kinds] == [FIRST_SIGNATURE]
        manifest = Manifest(
            base_size=len(first.file.data),
            base_sha256=hashlib.sha256(first.file.data).digest(),
            base_hash=bytes.fromhex(backbone.hash),
            features=backbone.feature_dim if alone else 0,
            max_classes=kinds[0].room if alone else 0,
            image_size=backbone.image_size if alone else 0,
            quantize=quantize,
            entries=tuple(slot.entry for slot in ordered),
            task_place=0 if place is None else place.offset,
            graphs=() if alone else tuple(_signature(graph.network, backbone) for graph in graphs),
        )
        return cls(tuple(graphs), manifest, ordered)


def _signature(network: Network, backbone: Backbone) -> Signature:
    kind = network.kind
    features = backbone.feature_dim if kind.head.is_dense else 0
    return Signature(kind.signature, kind.image_shape, kind.room, features, network.places)


def _ranges_of(graph: Graph, tasks: Tasks) -> Ranges:
    return find_ranges(graph.file, list(graph.constants.values()), graph.network, tasks(graph.network))


def _joined(graphs: Sequence[Graph], backbone: Backbone) -> list[Graph]:
    """Returns the graphs of several files as those of one."""
    parts = [GraphPart(graph.network.kind.signature, graph.file, graph.constants) for graph in graphs]
    model = join(parts)
    add_metadata(model, backbone.name, backbone.preprocessing)
    add_task_place(model)
    file = LiteFile(pack_objects(model))
    return [
        dataclasses.replace(graph, file=file.with_graph(number) if number else file)
        for number, graph in enumerate(graphs)
    ]


def make_float_file(backbone: Backbone, network: Network, quantize: str) -> tuple[LiteFile, list[Constant]]:
    """Returns a file with marked weights, and which of its constants tasks change."""
    marks = network.marked()
    file = _with_places(convert(backbone, network.kind, marks, quantize), backbone)
    return file, identify(file, network, marks)


def _with_places(content: bytes, backbone: Backbone) -> LiteFile:
    """Returns a converted file with metadata, a place that says which task is on it, and a buffer for each constant."""
    model = read_objects(content)
    add_metadata(model, backbone.name, backbone.preprocessing)
    add_task_place(model)
    separate_buffers(model)
    return LiteFile(pack_objects(model))


def constants_from_json(
    entries: list[Mapping[str, Any]], file: LiteFile, network: Network, graph: int = 0
) -> list[Constant]:
    """Returns the constants of a graph that `Slot.to_json` described.

    Raises:
        KeyError, TypeError, ValueError: If it did not, or not those of this file and network.
    """
    constants = []
    for entry in entries:
        tensors = entry.get("tensors", {"0": entry["tensor"]})
        if entry["part"] == "data" and str(graph) in tensors:
            fields = {name: entry[name] for name in _FIELDS if name in entry} | _order(entry)
            constants.append(Constant(tensors[str(graph)], **fields))
    tensors = {tensor.index: tensor for tensor in file.constants()}
    for constant in constants:
        tensor = tensors.get(constant.tensor)
        if tensor is None or not _is_known(constant, network) or _size(constant, network) != tensor.data.count:
            raise ValueError(f"the constant of tensor {constant.tensor!r} is none of this base")
    return constants


def _is_known(constant: Constant, network: Network) -> bool:
    """Returns whether what a constant is said to be made of is in a network."""
    kernel, norm = network.kernels.get(constant.kernel), network.norms.get(constant.norm)
    if constant.bias is not None and constant.bias not in network.weights:
        return False
    if norm is None and (constant.norm is not None or constant.role in (BIAS, FACTOR, OFFSET)):
        return False
    if constant.role == FILTER:
        return kernel is not None and sorted(constant.order) == list(range(len(kernel.shape)))
    if constant.role == VECTOR:
        return constant.bias is not None and constant.bias in network.vectors
    return constant.role in (BIAS, FACTOR, OFFSET, HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE)


def _size(constant: Constant, network: Network) -> int:
    return constant.value(network, network.weights).size


def _order(entry: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {"order": tuple(entry["order"])} if "order" in entry else {}


def _quantised(graph: Graph, marked: bytes, ranges: Ranges, backbone: Backbone) -> Graph:
    """Returns a graph in int8, with marked weights."""
    new = _with_places(quantise(marked, ranges), backbone)
    pairs = corresponding(graph.file, new)
    return Graph.of(graph.network, new, move_constants(list(graph.constants.values()), pairs))


def _write_fixed_biases(file: LiteFile, graph: Graph) -> None:
    """Writes biases that no task changes in multiples of the base's filters; the converter saw marked ones.

    Args:
        file: The same graph in float32.
        graph: The graph in int8.
    """
    new, encoder = graph.file, graph.encoder
    for operator, quantised in zip(file.computing(), new.computing(), strict=True):
        _, kernel, bias = filter_inputs(quantised)
        target = new.tensors[bias] if bias >= 0 else None
        fixed = target is not None and target.data is not None and target.index not in encoder.constants
        if fixed and kernel in encoder.constants and target.data.dtype == np.int32:
            value = file.floats(file.tensors[filter_inputs(operator)[2]])
            write_elements(new, target, bias_elements(value, encoder.bias_scales(bias, graph.network.weights)))


def _slots(graph: Graph, number: int, constant: Constant) -> Iterator[Slot]:
    """Yields the entries of a constant of a graph, by its number."""
    tensor = graph.file.tensors[constant.tensor]
    # What a task masks; a filter of its head it brings.
    masked = constant.role == FILTER and not constant.of_head
    # For a device there is no difference.
    kind = KIND_CODES[BIAS if constant.role == VECTOR else constant.role]
    if constant.of_head:
        kind = KIND_CODES[HEAD_KERNEL_ROLE if constant.role in (FILTER, HEAD_KERNEL_ROLE) else HEAD_BIAS_ROLE]
    channels, inner = constant.channels(graph.network) if masked else (1, 1)
    quantised = masked and tensor.data.dtype == np.int8
    scales = (tensor.scales.offset, tensor.scales.count) if quantised else (0, 0)
    data = tensor.data
    yield Slot(
        Entry(kind, data.dtype, data.offset, data.count, channels, inner, tensor.index, *scales, graph=number),
        {},
        "data",
    )
    # A filter that no task changes but by masks keeps its scales under every task.
    keeps = masked and constant.norm is None and constant.kernel not in graph.network.rescaled
    if tensor.scales is None or keeps:
        return
    yield Slot(_entry("scales", tensor.scales, tensor.index, number), {}, "scales")
    if constant.role in (FACTOR, OFFSET, VECTOR) and tensor.data.dtype == np.int8:
        yield Slot(_entry("zeros", tensor.zeros, tensor.index, number), {}, "zeros")


def _entry(kind: str, span: Span, tensor: int, graph: int) -> Entry:
    return Entry(KIND_CODES[kind], span.dtype, span.offset, span.count, 1, 1, tensor, graph=graph)


def _check_apart(graphs: Sequence[Graph]) -> None:
    """Fails if a constant shares its bytes with another tensor that is not the same constant in another graph.

    Raises:
        ValueError: With the first one.
    """
    for _, owners in shared_between([graph.file for graph in graphs]):
        constants = [graphs[number].constants.get(tensor) for number, tensor in owners]
        made_of = {constant and dataclasses.replace(constant, tensor=-1) for constant in constants}
        if (
            len(owners) > 1
            and made_of != {None}
            and (len(made_of) > 1 or len({number for number, _ in owners}) < len(owners))
        ):
            number, tensor = owners[0]
            raise ValueError(f"Tensor {graphs[number].file.tensors[tensor].name!r} shares its bytes with another one.")
