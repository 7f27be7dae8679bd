"""Several graphs in one .tflite file, over the same buffers where they are the same constants of the base."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..flatbuffer import LiteFile, read_objects
from .constants import Constant

# Of the runtime that a file needs, in a buffer of its metadata.
_RUNTIME = b"min_runtime_version"


@dataclasses.dataclass(frozen=True, eq=False)
class GraphPart:
    """A file of one graph.

    Attributes:
        signature: What the graph's signature is to be called.
        file: The file, with the base's own weights.
        constants: What tasks change, by the number of the tensor.
    """

    signature: str
    file: LiteFile
    constants: Mapping[int, Constant]


def join(parts: Sequence[GraphPart]) -> schema.ModelT:
    """Returns a model with the graphs of several files, in their order, and no metadata but the least runtime.

    Two graphs share the buffer of a constant that tasks change if it is made of the same weights and holds the same
    numbers with the same scales, so that a task for either changes it in the same way; and of any other constant if the
    bytes are equal. What the tensors of one graph do not share, they do not share here.
    """
    models = [read_objects(bytes(part.file.data)) for part in parts]
    least = max(filter(None, map(_least_runtime, models)), key=_version, default=None)
    joined = schema.ModelT()
    joined.version, joined.description = models[0].version, models[0].description
    joined.buffers, joined.operatorCodes, joined.subgraphs, joined.signatureDefs = [schema.BufferT()], [], [], []
    joined.metadata = []
    known: dict[tuple, int] = {}
    for number, (part, model) in enumerate(zip(parts, models, strict=True)):
        (graph,), (signature,) = model.subgraphs, model.signatureDefs
        codes = [_place_of(code, joined.operatorCodes) for code in model.operatorCodes]
        for operator in graph.operators:
            operator.opcodeIndex = codes[operator.opcodeIndex]
        own: dict[tuple, int] = {}
        for index, tensor in enumerate(graph.tensors):
            buffer = model.buffers[tensor.buffer]
            if buffer.data is None or not len(buffer.data):
                tensor.buffer = 0
                continue
            key = _key(part, index, bytes(buffer.data))
            # Of two equal constants of one graph the second has a buffer of its own, to which no other graph points.
            if key in own or key not in known:
                joined.buffers.append(buffer)
                tensor.buffer = len(joined.buffers) - 1
            else:
                tensor.buffer = known[key]
            own.setdefault(key, tensor.buffer)
        known = {**own, **known}
        graph.name = signature.signatureKey = part.signature.encode()
        signature.subgraphIndex = number
        joined.subgraphs.append(graph)
        joined.signatureDefs.append(signature)
    if least is not None:
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data, entry.name, entry.buffer = np.frombuffer(least, np.uint8), _RUNTIME, len(joined.buffers)
        joined.buffers.append(buffer)
        joined.metadata.append(entry)
    return joined


def shared_between(files: Sequence[LiteFile]) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """Yields each buffer of constants, with the graphs and tensors that it is of."""
    owners: dict[int, list[tuple[int, int]]] = {}
    for number, file in enumerate(files):
        for tensor in file.constants():
            owners.setdefault(tensor.buffer, []).append((number, tensor.index))
    yield from owners.items()


def _key(part: GraphPart, index: int, content: bytes) -> tuple:
    """Returns what is equal for constants of two graphs that may share a buffer."""
    tensor = part.file.tensors[index]
    constant = part.constants.get(index)
    if constant is None:
        return tensor.type, content
    spans = [span for span in (tensor.scales, tensor.zeros) if span is not None]
    return dataclasses.replace(constant, tensor=-1), content, *(part.file.read(span).tobytes() for span in spans)


def _place_of(code: schema.OperatorCodeT, codes: list[schema.OperatorCodeT]) -> int:
    """Returns the place of a kind of operator in a list, at whose end it is put if it is not there."""
    for place, known in enumerate(codes):
        if vars(known) == vars(code):
            return place
    codes.append(code)
    return len(codes) - 1


def _least_runtime(model: schema.ModelT) -> bytes | None:
    for entry in model.metadata or ():
        if entry.name == _RUNTIME:
            return bytes(model.buffers[entry.buffer].data)
    return None


def _version(content: bytes) -> list[int]:
    return [int(number) for number in content.rstrip(b"\0").split(b".")]
