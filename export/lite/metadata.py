"""LiteRT metadata: what the model takes and returns, for tools that read it.

Written by the schema of TensorFlow Lite metadata, file identifier `M001`; the numbers below are places of fields in its
tables. Labels are in the files of tasks; a model of one task alone names a file of labels, which lies in a zip archive
behind it.
"""

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..edge.piggyback_edge import DIGEST

NAME = b"TFLITE_METADATA"
# Zeros, over which a patcher writes the digest of the task that it installs.
TASK_NAME = b"PIGGYBACK_TASK"
LABELS_FILE = "labels.txt"
_AXIS_LABELS = 2
_IMAGE_PROPERTIES, _NORMALIZATION, _FEATURE_PROPERTIES, _RGB = 2, 1, 1, 1


# What tensors are, by their names in signatures.
_DESCRIPTIONS = {
    "features": "Softmax of the task's head on these features gives probabilities; head and labels are in the task's "
    "file.",
    "logits": "Softmax of the first ones gives probabilities, as many as the task has classes; see the task's file.",
    "probabilities": "Of the task's classes, in the order of the labels in its file; behind them are zeros. "
    "All are zeros if images hold other numbers than those in [0, 255].",
    "scores": "How sure the task is, at each point and for each class, that it is near the middle of an object. The "
    "first ones are of the task's classes.",
    "sides": "How far up, left, down and right of each point the sides of its object's box are, in pixels.",
    "labels": "For each pixel the number of its class; the names are in the order of these numbers.",
    "mask": "The masks of the task, from its file.",
    "norm": "The batch norm of the task, from its file.",
    "head": "The kernel of the task's head, from its file.",
    "bias": "The bias of the task's head, from its file.",
    "classes": "How many classes the task has.",
}


def add_metadata(model: schema.ModelT, name: str, preprocessing: str, *, labels: bool = False) -> None:
    """Adds metadata to a model, in which each subgraph has at most one signature.

    Args:
        model: The model.
        name: The base's name.
        preprocessing: What the graph does to RGB values.
        labels: Whether it is of one task alone, whose labels are in the file `LABELS_FILE` behind the model.
    """
    _add(model, NAME, _metadata(model, name, preprocessing, labels))


def add_task_place(model: schema.ModelT) -> None:
    """Adds a place to a model in which a patcher says which task is on it."""
    _add(model, TASK_NAME, bytes(DIGEST))


def _add(model: schema.ModelT, name: bytes, content: bytes) -> None:
    """Adds an entry to the metadata of a model, in the place of one of that name."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(content, np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers) - 1
    model.metadata = [*(each for each in model.metadata or [] if each.name != name), entry]


def _metadata(model: schema.ModelT, name: str, preprocessing: str, labels: bool) -> bytes:
    builder = flatbuffers.Builder(1024)
    signatures = {signature.subgraphIndex: signature for signature in model.signatureDefs or []}
    graphs = _vector(
        builder,
        [
            _graph(builder, graph, signatures.get(index), preprocessing, labels)
            for index, graph in enumerate(model.subgraphs)
        ],
    )
    what = "A model of one task" if labels else "A base for tasks that are masks over its weights"
    text = builder.CreateString(f"{what}; docs/litert.md of piggyback_tf.")
    title, version = builder.CreateString(name), builder.CreateString("1")
    least = builder.CreateString("1.0.0")
    builder.Finish(_table(builder, [title, text, version, graphs, None, None, None, least]), b"M001")
    return bytes(builder.Output())


def _graph(
    builder: flatbuffers.Builder,
    graph: schema.SubGraphT,
    signature: schema.SignatureDefT | None,
    preprocessing: str,
    labels: bool,
) -> int:
    """Returns a SubGraphMetadata, with what the signature says of its tensors in the order that the graph has them."""
    if signature is None:
        return _table(builder, [])
    sides = []
    for tensors, named in ((graph.inputs, signature.inputs), (graph.outputs, signature.outputs)):
        names = {each.tensorIndex: each.name.decode() for each in named}
        sides.append(_vector(builder, [_described(builder, names[int(i)], preprocessing, labels) for i in tensors]))
    title = builder.CreateString(signature.signatureKey)
    return _table(builder, [title, None, *sides])


def _described(builder: flatbuffers.Builder, name: str, preprocessing: str, labels: bool) -> int:
    """Returns the TensorMetadata of a tensor with this name."""
    if name in ("probabilities", "labels", "scores") and labels:
        file, text = builder.CreateString(LABELS_FILE), builder.CreateString("The classes, one in each line.")
        content = _content(builder, _FEATURE_PROPERTIES, _table(builder, []))
        files = [_table(builder, [file, text, ("int8", _AXIS_LABELS)])]
        if name != "probabilities":
            return _tensor(builder, name, _DESCRIPTIONS[name], content, files=files)
        return _tensor(builder, name, "Probabilities of the classes.", content, limits=(0.0, 1.0), files=files)
    if name != "images":
        return _tensor(builder, name, _DESCRIPTIONS[name], _content(builder, _FEATURE_PROPERTIES, _table(builder, [])))
    # Values in [0, 255] go in as they are: normalisation is a part of the graph.
    normalization = _table(builder, [_floats(builder, [0.0]), _floats(builder, [1.0])])
    return _tensor(
        builder,
        name,
        f"RGB images with values in [0, 255]. The graph normalises them itself: {preprocessing}",
        _content(builder, _IMAGE_PROPERTIES, _table(builder, [("int8", _RGB)])),
        [_table(builder, [("uint8", _NORMALIZATION), normalization])],
        (0.0, 255.0),
    )


def _tensor(
    builder: flatbuffers.Builder,
    name: str,
    description: str,
    content: int,
    units: Sequence[int] = (),
    limits: tuple[float, float] | None = None,
    files: Sequence[int] = (),
) -> int:
    """Returns a TensorMetadata."""
    title, text = builder.CreateString(name), builder.CreateString(description)
    processing = _vector(builder, units) if units else None
    stats = None
    if limits is not None:
        stats = _table(builder, [_floats(builder, [limits[1]]), _floats(builder, [limits[0]])])
    return _table(builder, [title, text, None, content, processing, stats, _vector(builder, files) if files else None])


def _content(builder: flatbuffers.Builder, kind: int, properties: int) -> int:
    return _table(builder, [("uint8", kind), properties])


def _table(builder: flatbuffers.Builder, fields: Sequence[int | tuple[str, int] | None]) -> int:
    """Returns a table of what was written before: a place, a small number with its type, or None, by field."""
    builder.StartObject(len(fields))
    for slot, value in enumerate(fields):
        if isinstance(value, tuple):
            add = builder.PrependInt8Slot if value[0] == "int8" else builder.PrependUint8Slot
            add(slot, value[1], 0)
        elif value is not None:
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
    return builder.EndObject()


def _vector(builder: flatbuffers.Builder, places: Sequence[int]) -> int:
    builder.StartVector(4, len(places), 4)
    for place in reversed(places):
        builder.PrependUOffsetTRelative(place)
    return builder.EndVector()


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    return builder.CreateNumpyVector(np.array(values, np.float32))
