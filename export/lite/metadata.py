"""LiteRT metadata: what the model takes and returns, for tools that read it.

Written by the schema of TensorFlow Lite metadata, file identifier `M001`; the numbers below are places of fields in its
tables. Labels are not there: they are in the files of tasks.
"""

from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

NAME = b"TFLITE_METADATA"
_IMAGE_PROPERTIES, _NORMALIZATION, _FEATURE_PROPERTIES, _RGB = 2, 1, 1, 1


def add_metadata(model: schema.ModelT, name: str, preprocessing: str, output: str) -> None:
    """Adds metadata to a model.

    Args:
        model: The model; it takes images and returns one tensor.
        name: The base's name.
        preprocessing: What the graph does to RGB values.
        output: What the tensor is that it returns.
    """
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(_metadata(name, preprocessing, output), np.uint8)
    model.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = NAME, len(model.buffers) - 1
    model.metadata = [*(each for each in model.metadata or [] if each.name != NAME), entry]


def _metadata(name: str, preprocessing: str, output: str) -> bytes:
    builder = flatbuffers.Builder(1024)
    # Values in [0, 255] go in as they are: normalisation is a part of the graph.
    normalization = _table(builder, [_floats(builder, [0.0]), _floats(builder, [1.0])])
    image = _tensor(
        builder,
        "images",
        f"RGB images with values in [0, 255]. The graph normalises them itself: {preprocessing}",
        _content(builder, _IMAGE_PROPERTIES, _table(builder, [("int8", _RGB)])),
        [_table(builder, [("uint8", _NORMALIZATION), normalization])],
        (0.0, 255.0),
    )
    result = _tensor(
        builder,
        output,
        "Softmax of the task's head on these features gives probabilities; head and labels are in the task's file."
        if output == "features"
        else "Softmax of the first ones gives probabilities, as many as the task has classes; see the task's file.",
        _content(builder, _FEATURE_PROPERTIES, _table(builder, [])),
    )
    inputs, outputs = _vector(builder, [image]), _vector(builder, [result])
    graph = _table(builder, [None, None, inputs, outputs])
    text = builder.CreateString(
        "A base for tasks that are masks over its weights; docs/edge-format.md of piggyback_tf."
    )
    title, version = builder.CreateString(name), builder.CreateString("1")
    least = builder.CreateString("1.0.0")
    graphs = _vector(builder, [graph])
    builder.Finish(_table(builder, [title, text, version, graphs, None, None, None, least]), b"M001")
    return bytes(builder.Output())


def _tensor(
    builder: flatbuffers.Builder,
    name: str,
    description: str,
    content: int,
    units: Sequence[int] = (),
    limits: tuple[float, float] | None = None,
) -> int:
    """Returns a TensorMetadata."""
    title, text = builder.CreateString(name), builder.CreateString(description)
    processing = _vector(builder, units) if units else None
    stats = None
    if limits is not None:
        stats = _table(builder, [_floats(builder, [limits[1]]), _floats(builder, [limits[0]])])
    return _table(builder, [title, text, None, content, processing, stats])


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
