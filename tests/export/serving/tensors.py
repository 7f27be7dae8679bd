"""Tensors as TensorFlow Serving's two APIs write them, to arrays and back, without TensorFlow's Python."""

import base64
import importlib.util
import json
import math
import sys
import types

import numpy as np

INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, FAILED_PRECONDITION = 3, 5, 8, 9
DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 7: object, 9: np.int64, 10: np.bool_}
FIELDS = {1: "float_val", 2: "double_val", 3: "int_val", 4: "int_val", 7: "string_val", 9: "int64_val", 10: "bool_val"}


class ServingError(Exception):
    """A request that is answered with an error: one of gRPC's codes, and a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def import_messages():
    """Imports TensorFlow Serving's messages and services, of the package `tensorflow` its messages alone.

    `tensorflow/__init__.py` would load the whole library into the process; an empty module in its place does not.
    """
    if "tensorflow" not in sys.modules:
        sys.modules["tensorflow"] = importlib.util.module_from_spec(importlib.util.find_spec("tensorflow"))
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    return types.SimpleNamespace(
        predict=predict_pb2,
        status=get_model_status_pb2,
        metadata=get_model_metadata_pb2,
        model_service=model_service_pb2_grpc,
        prediction_service=prediction_service_pb2_grpc,
    )


def from_proto(tensor):
    """Returns the array in a TensorProto; an error if it does not hold what it says."""
    if tensor.dtype not in DTYPES:
        raise ServingError(INVALID_ARGUMENT, f"This server knows no tensors of type {tensor.dtype}")
    dtype, shape = DTYPES[tensor.dtype], [dim.size for dim in tensor.tensor_shape.dim]
    size = math.prod(shape)
    if tensor.tensor_content:
        if len(tensor.tensor_content) != size * np.dtype(dtype).itemsize:
            raise ServingError(INVALID_ARGUMENT, "Parsing of the tensor's content failed: it has another length")
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = list(getattr(tensor, FIELDS[tensor.dtype]))
    if len(values) > size:
        raise ServingError(INVALID_ARGUMENT, "The tensor has more values than its shape")
    array = np.full(size, b"" if dtype is object else 0, dtype)
    if values:
        array[:] = values[-1]
        array[: len(values)] = values
    return array.reshape(shape)


def to_proto(array, tensor):
    """Writes an array into a TensorProto, each value by itself, as the server does."""
    number = next(number for number, dtype in DTYPES.items() if array.dtype == dtype)
    tensor.dtype = number
    tensor.tensor_shape.SetInParent()
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    getattr(tensor, FIELDS[number]).extend(array.reshape(-1).tolist())


def read_body(body):
    """Returns the object in the body of a request; NaN and Infinity are read, though they are not JSON."""
    try:
        content = json.loads(body)
    except ValueError as error:
        raise ServingError(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    if not isinstance(content, dict):
        raise ServingError(INVALID_ARGUMENT, "JSON Value: Is not object")
    return content


def from_json(content, takes):
    """Returns the arrays in a request, and whether it has rows ("instances") or columns ("inputs").

    Args:
        content: The request.
        takes: By name the numbers of the inputs' types.
    """
    if not takes:
        raise ServingError(
            INVALID_ARGUMENT, f"Failed to get input map for signature: {content.get('signature_name', 'DEFAULT')}"
        )
    if ("instances" in content) == ("inputs" in content):
        raise ServingError(INVALID_ARGUMENT, "Missing 'inputs' or 'instances' key, or both of them are there")
    if "inputs" in content:
        inputs = content["inputs"]
        if not isinstance(inputs, dict) or _is_base64(inputs):
            if len(takes) > 1:
                raise ServingError(INVALID_ARGUMENT, "inputs is a plain value/list, but expecting an object")
            inputs = {next(iter(takes)): inputs}
        if missing := [name for name in takes if name not in inputs]:
            raise ServingError(INVALID_ARGUMENT, f"Missing named input: {missing[0]} in 'inputs' object.")
        return {name: _to_array(inputs[name], number) for name, number in takes.items()}, False
    rows = content["instances"]
    if not isinstance(rows, list) or not rows:
        raise ServingError(INVALID_ARGUMENT, "No values in 'instances' array")
    if not isinstance(rows[0], dict) or _is_base64(rows[0]):
        if len(takes) > 1:
            raise ServingError(INVALID_ARGUMENT, "instances is a plain list, but expecting list of objects")
        rows = [{next(iter(takes)): row} for row in rows]
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or row.keys() != takes.keys():
            raise ServingError(
                INVALID_ARGUMENT, f"Failed to process element: {index} keys must be equal to: {','.join(takes)}"
            )
    return {name: _to_array([row[name] for row in rows], number) for name, number in takes.items()}, True


def to_json(outputs, rows):
    """Returns the body of an answer; a single output stands without its name."""
    columns = {name: _plain(array.tolist(), name.endswith("_bytes")) for name, array in outputs.items()}
    if rows:
        names = list(columns)
        found = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return {"predictions": [row[names[0]] for row in found] if len(names) == 1 else found}
    return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}


def _plain(value, is_bytes):
    if isinstance(value, list):
        return [_plain(item, is_bytes) for item in value]
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()} if is_bytes else value.decode(errors="replace")
    return value


def _is_base64(value):
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _to_array(value, number):
    shape, inner = [], value
    while isinstance(inner, list):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    leaves = []
    _collect(value, shape, number, leaves)
    array = np.empty(len(leaves), DTYPES[number])
    array[:] = leaves
    return array.reshape(shape)


def _collect(value, shape, number, leaves):
    """Appends the leaves of nested lists, which must all have the shape."""
    if isinstance(value, list):
        if not shape or len(value) != shape[0]:
            raise ServingError(INVALID_ARGUMENT, f"Encountered list at unexpected size: {len(value)}")
        for item in value:
            _collect(item, shape[1:], number, leaves)
        return
    if shape:
        raise ServingError(INVALID_ARGUMENT, f"JSON Value: {value!r:.50} found at incorrect level")
    leaves.append(_leaf(value, number))


def _leaf(value, number):
    if number == 7:
        if _is_base64(value):
            try:
                return base64.b64decode(value["b64"], validate=True)
            except ValueError as error:
                raise ServingError(INVALID_ARGUMENT, "Unable to base64 decode") from error
        good, value = isinstance(value, str), value.encode() if isinstance(value, str) else value
    elif number in (1, 2):
        good = isinstance(value, int | float) and not isinstance(value, bool)
    elif number == 10:
        good = isinstance(value, bool)
    else:
        good = isinstance(value, int) and not isinstance(value, bool)
        # The real server wraps what does not fit into a byte around.
        value = value % 256 if good and number == 4 else value
    if not good:
        raise ServingError(INVALID_ARGUMENT, f"JSON Value: {value!r:.50} is not of expected type: {number}")
    return value
