"""Runs a SavedModel through TensorFlow's C API by ctypes: TensorFlow Serving's loader, and no Python of TensorFlow.

As a program it answers calls that a test hands over: python c_api.py MODEL REQUESTS.npz ANSWERS.npz
"""

import ctypes
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np

_STRING = 7
_DTYPES = {1: np.float32, 2: np.float64, 3: np.int32, 4: np.uint8, 6: np.int8, 9: np.int64, 10: np.bool_}
_NUMBERS = {np.dtype(dtype): number for number, dtype in _DTYPES.items()}
_TSTRING_BYTES = 24


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class _Buffer(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("length", ctypes.c_size_t), ("deallocator", ctypes.c_void_p)]


class CallError(Exception):
    """An error that TensorFlow returned; the message is TensorFlow's, and so is the number `code`."""

    def __init__(self, message, code=3):
        super().__init__(message)
        self.code = code


def _load_library():
    # `find_spec` finds the package without importing it.
    folder = Path(importlib.util.find_spec("tensorflow").origin).parent
    ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"), ctypes.RTLD_GLOBAL)
    library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"), ctypes.RTLD_GLOBAL)
    pointers = (
        "TF_NewStatus TF_NewGraph TF_NewSessionOptions TF_NewBuffer TF_LoadSessionFromSavedModel TF_AllocateTensor "
        "TF_TensorData TF_GraphOperationByName TF_StringGetDataPointer"
    )
    for name in pointers.split():
        getattr(library, name).restype = ctypes.c_void_p
    library.TF_Message.restype = ctypes.c_char_p
    library.TF_Dim.restype = library.TF_TensorElementCount.restype = ctypes.c_int64
    library.TF_TensorByteSize.restype = library.TF_StringGetSize.restype = ctypes.c_size_t
    return library


class Session:
    """A SavedModel in a C++ session.

    Args:
        folder: The SavedModel.

    Attributes:
        signatures: By name the inputs and outputs, each a dict from a name to (tensor, dtype, shape).
    """

    def __init__(self, folder):
        self._tf = _load_library()
        self._status = ctypes.c_void_p(self._tf.TF_NewStatus())
        self._graph = ctypes.c_void_p(self._tf.TF_NewGraph())
        meta_graph = self._tf.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = ctypes.c_void_p(
            self._tf.TF_LoadSessionFromSavedModel(
                ctypes.c_void_p(self._tf.TF_NewSessionOptions()),
                None,
                str(folder).encode(),
                tags,
                1,
                self._graph,
                ctypes.c_void_p(meta_graph),
                self._status,
            )
        )
        self._check(self._status)
        buffer = _Buffer.from_address(meta_graph)
        self.signatures = _read_signatures(ctypes.string_at(buffer.data, buffer.length))
        self._tf.TF_DeleteBuffer(ctypes.c_void_p(meta_graph))

    def run(self, signature, **inputs):
        """Calls a signature with arrays, those of texts being of bytes objects, and returns its outputs by name.

        Threads may call it at the same time.

        Raises:
            CallError: If TensorFlow fails.
        """
        takes, gives = self.signatures[signature]
        if takes.keys() != inputs.keys():
            raise CallError(f"{signature!r} takes {sorted(takes)}, not {sorted(inputs)}")
        feeds = (_Output * len(takes))(*(self._output(takes[name][0]) for name in inputs))
        fetches = (_Output * len(gives))(*(self._output(gives[name][0]) for name in gives))
        tensors = (ctypes.c_void_p * len(takes))(*(self._tensor(np.asarray(value)) for value in inputs.values()))
        results = (ctypes.c_void_p * len(gives))()
        status = ctypes.c_void_p(self._tf.TF_NewStatus())
        self._tf.TF_SessionRun(
            self._session,
            None,
            feeds,
            tensors,
            len(takes),
            fetches,
            results,
            len(gives),
            None,
            0,
            None,
            status,
        )
        for tensor in tensors:
            self._delete(ctypes.c_void_p(tensor))
        try:
            self._check(status)
        finally:
            self._tf.TF_DeleteStatus(status)
        return {name: self._array(ctypes.c_void_p(tensor)) for name, tensor in zip(gives, results, strict=True)}

    def close(self):
        """Gives the memory back."""
        for delete, thing in ((self._tf.TF_DeleteSession, self._session), (self._tf.TF_DeleteGraph, self._graph)):
            delete(thing, self._status) if delete is self._tf.TF_DeleteSession else delete(thing)

    def _check(self, status):
        if self._tf.TF_GetCode(status):
            raise CallError(self._tf.TF_Message(status).decode(errors="replace"), self._tf.TF_GetCode(status))

    def _output(self, name):
        operation, _, index = name.partition(":")
        found = self._tf.TF_GraphOperationByName(self._graph, operation.encode())
        if not found:
            raise CallError(f"The graph has no operation {operation!r}.")
        return _Output(found, int(index))

    def _tensor(self, array):
        dims = (ctypes.c_int64 * max(1, array.ndim))(*array.shape)
        text = array.dtype == object
        number = _STRING if text else _NUMBERS[array.dtype]
        size = _TSTRING_BYTES * array.size if text else array.nbytes
        tensor = self._tf.TF_AllocateTensor(number, dims, array.ndim, ctypes.c_size_t(size))
        data = self._tf.TF_TensorData(ctypes.c_void_p(tensor))
        if not text:
            array = np.ascontiguousarray(array)
            if size:
                ctypes.memmove(data, array.ctypes.data, size)
            return tensor
        for index, value in enumerate(array.reshape(-1)):
            place = ctypes.c_void_p(data + _TSTRING_BYTES * index)
            self._tf.TF_StringInit(place)
            self._tf.TF_StringCopy(place, ctypes.c_char_p(value), ctypes.c_size_t(len(value)))
        return tensor

    def _delete(self, tensor):
        # What is behind long texts does not go with a tensor that was allocated here.
        if self._tf.TF_TensorType(tensor) == _STRING:
            data = self._tf.TF_TensorData(tensor)
            for index in range(self._tf.TF_TensorElementCount(tensor)):
                self._tf.TF_StringDealloc(ctypes.c_void_p(data + _TSTRING_BYTES * index))
        self._tf.TF_DeleteTensor(tensor)

    def _array(self, tensor):
        number = self._tf.TF_TensorType(tensor)
        shape = [self._tf.TF_Dim(tensor, index) for index in range(self._tf.TF_NumDims(tensor))]
        data, count = self._tf.TF_TensorData(tensor), int(np.prod(shape))
        if number == _STRING:
            places = [ctypes.c_void_p(data + _TSTRING_BYTES * index) for index in range(count)]
            array = np.empty(count, object)
            for index, place in enumerate(places):
                array[index] = ctypes.string_at(
                    self._tf.TF_StringGetDataPointer(place), self._tf.TF_StringGetSize(place)
                )
        else:
            data = ctypes.string_at(data, self._tf.TF_TensorByteSize(tensor)) if count else b""
            array = np.frombuffer(data, _DTYPES[number])
        self._tf.TF_DeleteTensor(tensor)
        return array.reshape(shape)


def _read_signatures(meta_graph):
    """Returns signature_def of a MetaGraphDef: by name the inputs and outputs; `_fields` says how it is read."""
    found = {}
    for entry in _fields(meta_graph).get(5, []):
        entry = _fields(entry)
        name, signature = entry[1][0].decode(), _fields(entry[2][0])
        # The op that initialises resources is listed as a signature, too.
        if not name.startswith("__"):
            found[name] = tuple(_read_tensors(signature.get(number, [])) for number in (1, 2))
    return found


def _read_tensors(entries):
    tensors = {}
    for entry in map(_fields, entries):
        info = _fields(entry[2][0])
        sizes = [_fields(size).get(1, [0])[0] for size in _fields(info.get(3, [b""])[0]).get(2, [])]
        shape = [size - (1 << 64) if size >> 63 else size for size in sizes]
        tensors[entry[1][0].decode()] = (info[1][0].decode(), info[2][0], shape)
    return tensors


def _fields(message):
    """Returns the fields of a protocol buffer: by number the values, integers or bytes."""
    fields, place = {}, 0

    def varint():
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(kind) or varint()
            value = message[place : place + size]
            place += size
        fields.setdefault(number, []).append(value)
    return fields


def main(model, requests, answers):
    """Answers the calls in a file, in order; an error is written in the place of the outputs."""
    calls = np.load(requests, allow_pickle=True)["calls"]
    session, results = Session(model), []
    for signature, inputs in calls:
        try:
            results.append(session.run(signature, **inputs))
        except CallError as error:
            results.append(str(error))
    session.close()
    assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "keras")]
    written = np.empty(len(results), object)
    written[:] = results
    np.savez(answers, results=written, signatures=json.dumps(session.signatures))


if __name__ == "__main__":
    main(*sys.argv[1:])
