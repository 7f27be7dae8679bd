"""A .tflite file: its constants, where they lie, and its operators."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

# Element types of constants that are looked at.
_DTYPES: dict[int, np.dtype] = {
    schema.TensorType.FLOAT32: np.dtype("<f4"),
    schema.TensorType.FLOAT16: np.dtype("<f2"),
    schema.TensorType.INT8: np.dtype("i1"),
    schema.TensorType.INT32: np.dtype("<i4"),
    schema.TensorType.INT64: np.dtype("<i8"),
}
# LiteRT wants constants to begin at multiples of this.
_ALIGNMENT = 16
_PASSED_THROUGH = {schema.BuiltinOperator.QUANTIZE, schema.BuiltinOperator.DEQUANTIZE}


@dataclasses.dataclass(frozen=True)
class Span:
    """A part of a file that holds numbers: their dtype, their first byte, and how many there are."""

    dtype: np.dtype
    offset: int
    count: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph.

    Attributes:
        index: Its number.
        name: Its name.
        shape: Its shape.
        type: Its `TensorType`.
        buffer: The number of its buffer.
        data: Where its values are; None if it is no constant, or of an unusual type.
        scales: Where the scales of its quantisation are, or None.
        zeros: Where the zero points of its quantisation are, or None.
        axis: The dimension of scales that are one for each channel.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    type: int
    buffer: int
    data: Span | None
    scales: Span | None
    zeros: Span | None
    axis: int


@dataclasses.dataclass(frozen=True)
class Operator:
    """An operator of a graph: its builtin code, and the numbers of its tensors; -1 is none."""

    code: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class LiteFile:
    """The bytes of a .tflite file, and one of its graphs, whose constants can be read and written in place.

    Args:
        data: The file's content; it is copied.
        graph: The number of the graph, which is that of its subgraph and of its signature.

    Attributes:
        metadata: Where each entry of its metadata is that holds something, by name.
        graphs: How many graphs there are.

    Raises:
        ValueError: If it has subgraphs that are branches of others, or buffers outside the flatbuffer.
    """

    def __init__(self, data: bytes | bytearray, graph: int = 0):
        self._read(bytearray(data), graph)

    def with_graph(self, graph: int) -> "LiteFile":
        """Returns another graph of the same bytes: what is written through one is there for all."""
        other = object.__new__(LiteFile)
        other._read(self.data, graph)
        return other

    def _read(self, data: bytearray, number: int) -> None:
        self.data = data
        model = schema.Model.GetRootAs(data)
        self.graphs = model.SubgraphsLength()
        places = sorted(model.SignatureDefs(index).SubgraphIndex() for index in range(model.SignatureDefsLength()))
        # What is called by an operator has no signature.
        if self.graphs > 1 and places != list(range(self.graphs)):
            raise ValueError(f"The network becomes {self.graphs} graphs with branches; those without are patched.")
        self._begin = np.frombuffer(self.data, np.uint8).ctypes.data
        self.metadata = {}
        for entry in (model.Metadata(index) for index in range(model.MetadataLength())):
            content = model.Buffers(entry.Buffer())
            if content.DataLength():
                self.metadata[entry.Name()] = self._span(content.DataAsNumpy(), np.dtype("u1"))
        graph = model.Subgraphs(number)
        self.tensors = [self._tensor(model, graph, index) for index in range(graph.TensorsLength())]
        codes = [model.OperatorCodes(index) for index in range(model.OperatorCodesLength())]
        builtin = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
        operators = (graph.Operators(index) for index in range(graph.OperatorsLength()))
        self.operators = [
            Operator(builtin[op.OpcodeIndex()], _numbers(op.InputsAsNumpy()), _numbers(op.OutputsAsNumpy()))
            for op in operators
        ]

    def read(self, span: Span) -> np.ndarray:
        """Returns a copy of the numbers in a part of the file, `[count]`."""
        return np.frombuffer(self.data, span.dtype, span.count, span.offset).copy()

    def write(self, span: Span, values: np.ndarray) -> None:
        """Writes numbers into a part of the file; there must be as many of the same dtype."""
        if values.dtype != span.dtype or values.size != span.count:
            raise ValueError(f"{span} cannot hold {values.dtype} {values.shape}.")
        self.data[span.offset : span.offset + span.nbytes] = values.tobytes()

    def constants(self) -> Iterator[Tensor]:
        """Yields the tensors that are constants, in the order of their numbers."""
        return (tensor for tensor in self.tensors if tensor.data is not None)

    def floats(self, tensor: Tensor) -> np.ndarray:
        """Returns the values of a constant as float32 `[count]`, dequantised if it is."""
        return self.doubles(tensor).astype(np.float32)

    def doubles(self, tensor: Tensor) -> np.ndarray:
        """Returns what `floats` does as float64, which holds every product of an int32 and its scale."""
        values = self.read(tensor.data).astype(np.float64)
        if tensor.scales is None:
            return values
        zeros = self.read(tensor.zeros)
        return (values - (zeros[0] if zeros.size == 1 else 0)) * self.steps(tensor)

    def steps(self, tensor: Tensor) -> np.ndarray:
        """Returns by how much values of a constant differ at least, float64, `[count]` or `[1]`; 0 if it is a float."""
        if tensor.scales is None:
            return np.zeros(1)
        scales = self.read(tensor.scales).astype(np.float64)
        if scales.size == 1:
            return scales
        shape = [-1 if axis == tensor.axis else 1 for axis in range(len(tensor.shape))]
        return np.broadcast_to(scales.reshape(shape), tensor.shape).reshape(-1)

    def computing(self) -> list[Operator]:
        """Returns the operators without those that only change a type; constants are seen through them."""
        source = {op.outputs[0]: op.inputs[0] for op in self.operators if op.code in _PASSED_THROUGH}
        constants = {tensor.index for tensor in self.constants()}
        return [
            dataclasses.replace(op, inputs=tuple(source[i] if source.get(i) in constants else i for i in op.inputs))
            for op in self.operators
            if op.code not in _PASSED_THROUGH
        ]

    def _tensor(self, model: schema.Model, graph: schema.SubGraph, index: int) -> Tensor:
        tensor = graph.Tensors(index)
        buffer, quantization = model.Buffers(tensor.Buffer()), tensor.Quantization()
        if buffer.Offset() > 1:
            raise ValueError("The network is too large: a .tflite of more than 2 GB cannot be patched.")
        dtype = _DTYPES.get(tensor.Type())
        data = scales = zeros = None
        if buffer.DataLength() and dtype is not None:
            data = self._span(buffer.DataAsNumpy(), dtype)
        if quantization is not None and quantization.ScaleLength():
            scales = self._span(quantization.ScaleAsNumpy(), np.dtype("<f4"))
            zeros = self._span(quantization.ZeroPointAsNumpy(), np.dtype("<i8"))
        shape = _numbers(tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        axis = quantization.QuantizedDimension() if quantization is not None else 0
        return Tensor(index, tensor.Name().decode(), shape, tensor.Type(), tensor.Buffer(), data, scales, zeros, axis)

    def _span(self, view: np.ndarray, dtype: np.dtype) -> Span:
        return Span(dtype, view.ctypes.data - self._begin, view.nbytes // dtype.itemsize)


def read_objects(data: bytes) -> schema.ModelT:
    """Returns a file's content as objects that can be changed; `pack_objects` makes a file of them again."""
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))


def pack_objects(model: schema.ModelT) -> bytes:
    """Returns the file of a model, with constants aligned as LiteRT wants it."""
    builder = _AlignedBuilder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def separate_buffers(model: schema.ModelT) -> None:
    """Gives every tensor of a model a buffer of its own: conversion lets equal constants share one."""
    used = set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            content = model.buffers[tensor.buffer]
            if tensor.buffer in used and content.data is not None and len(content.data):
                model.buffers.append(content)
                tensor.buffer = len(model.buffers) - 1
            used.add(tensor.buffer)


class _AlignedBuilder(flatbuffers.Builder):
    """A builder that aligns vectors of bytes: the generated code leaves out the schema's `force_align`."""

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:  # noqa: N802, N803
        return super().StartVector(elemSize, numElems, _ALIGNMENT if elemSize == 1 else alignment)


@functools.singledispatch
def _numbers(array: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in array)


@_numbers.register
def _(array: int) -> tuple[int, ...]:
    # What the generated code returns where there is no vector.
    return ()
