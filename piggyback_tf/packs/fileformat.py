"""The file of a task pack: a safetensors file with one JSON document as metadata.

safetensors writes several metadata entries in an order that changes from run to run, hence the
single entry. Every check that a header allows is made before the tensors are read.
"""

import hashlib
import json
import math
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize

from piggyback_tf.packs import codec

METADATA_KEY = "piggyback_tf.task_pack"
FORMAT_VERSION = 1
MASK_KINDS = ("none", *codec.MASK_VALUES)
# The limit of the safetensors library itself.
_LARGEST_HEADER = 100_000_000
_DTYPES = {"U8": np.dtype("uint8"), "F32": np.dtype("<f4")}


class PackError(ValueError):
    """A task pack that cannot be used, with the reason."""


class PackFileError(PackError):
    """A `PackError` whose message names the file."""


def canonical_json(value: object) -> str:
    """Returns `value` as JSON that is the same for equal values: sorted keys, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_number)


def digest(document: dict, tensors: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of a pack's content: document and tensors, the date of creation aside."""
    content = {key: value for key, value in document.items() if key not in ("created", "checksum")}
    result = hashlib.sha256(canonical_json(content).encode("ascii"))
    for name, tensor in sorted(tensors.items()):
        # The description is framed by zero bytes, which JSON in ASCII cannot hold.
        description = canonical_json([name, tensor.dtype.name, list(tensor.shape)])
        result.update(b"\0" + description.encode("ascii") + b"\0")
        result.update(np.ascontiguousarray(tensor).data)
    return result.hexdigest()


def to_bytes(document: dict, tensors: dict[str, np.ndarray]) -> bytes:
    """Returns the bytes of a pack's file: the same content and date give the same bytes."""
    document = dict(document, checksum=digest(document, tensors))
    # Contiguous and little-endian, as safetensors wants them.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return serialize(tensors, metadata={METADATA_KEY: canonical_json(document)})


class PackReader:
    """Reads a pack's file in two steps: the header, and the tensors once the header is found good.

    Args:
        stream: The file, opened for reading bytes.
        size: The number of bytes in the file.
        name: What to call the file in errors.

    Raises:
        PackFileError: If the file is no task pack, is cut off, or is of a newer format.
    """

    def __init__(self, stream: BinaryIO, size: int, name: str):
        self._stream, self._size, self._name = stream, size, name
        self._start = stream.read(8)
        length = int.from_bytes(self._start, "little")
        if len(self._start) < 8 or not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise self.error("is no task pack, or only a part of one: its header does not fit into the file")
        self._header = stream.read(length)
        header = self._parse(self._header, "header")
        metadata = header.pop("__metadata__", None)
        text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise self.error("is a safetensors file, but no task pack: it does not describe a task")
        self.document = self._parse(text, "description of the task")
        self._entries = header
        version = self.document.get("format_version")
        if type(version) is not int or version < 1:
            raise self.error(f"has the format version {version!r}, which is no version")
        if version > FORMAT_VERSION:
            raise self.error(
                f"has format version {version}, and this version of piggyback_tf reads up to {FORMAT_VERSION}: "
                "upgrade piggyback_tf"
            )

    def error(self, what: str) -> PackFileError:
        """Returns an error about this file; `what` goes on after the file's name."""
        return PackFileError(f"The file {self._name!r} {what}.")

    def tensors(self, expected: dict[str, tuple[np.dtype, tuple[int, ...]]]) -> dict[str, np.ndarray]:
        """Returns the tensors.

        Args:
            expected: Name to dtype and shape of every tensor that the description asks for.

        Raises:
            PackFileError: If the file holds others, or its checksum is not that of its content.
        """
        if missing := sorted(expected.keys() - self._entries.keys()):
            raise self.error(f"lacks the tensor {missing[0]!r}")
        if extra := sorted(self._entries.keys() - expected.keys()):
            raise self.error(f"should not hold the tensor {extra[0]!r}")
        for name, (dtype, shape) in expected.items():
            entry = self._entries[name]
            found = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
            if _DTYPES.get(found[0] if isinstance(found[0], str) else "") != dtype or found[1] != list(shape):
                raise self.error(f"has the tensor {name!r} as {found[0]} {found[1]}, not as {dtype} {list(shape)}")
        content = sum(dtype.itemsize * math.prod(shape) for dtype, shape in expected.values())
        length = len(self._start) + len(self._header) + content
        if self._size != length:
            raise self.error(f"should be {length} bytes long and is {self._size}: it is cut off or damaged")
        try:
            entries = deserialize(self._start + self._header + self._stream.read())
        except SafetensorError as error:
            raise self.error(f"is damaged ({error})") from error
        tensors = {}
        for name, entry in entries:
            dtype, shape = expected[name]
            tensors[name] = np.frombuffer(entry["data"], dtype).reshape(shape)
        if self.document.get("checksum") != digest(self.document, tensors):
            raise self.error("is damaged: its checksum is not that of its content")
        return tensors

    def _parse(self, text: str | bytes, what: str) -> dict:
        try:
            text = text if isinstance(text, str) else text.decode("utf-8")
            value = json.loads(text, parse_constant=_refuse_constant)
        # Deep nesting ends in a RecursionError.
        except (ValueError, RecursionError) as error:
            raise self.error(f"is no task pack, or a damaged one: its {what} is not JSON") from error
        if not isinstance(value, dict):
            raise self.error(f"is no task pack, or a damaged one: its {what} is no JSON object")
        return value


def check_document(document: dict[str, Any], keys: set[str]) -> None:
    """Checks what has to be right in a pack's description before its tensors are read.

    Raises:
        PackError: If other entries than `keys` are there, or one of those that the tensors depend on is wrong.
    """
    if missing := sorted(keys - document.keys()):
        raise PackError(f"its description has no entry {missing[0]!r}.")
    if extra := sorted(document.keys() - keys):
        raise PackError(f"its description has an entry {extra[0]!r} that is not part of the format.")
    if document["codec"] != codec.CODEC:
        raise PackError(f"its masks are coded as {document['codec']!r}, and this version reads {codec.CODEC!r} only.")
    if document["mask_kind"] not in MASK_KINDS:
        raise PackError(f"its mask kind is {document['mask_kind']!r}, none of {MASK_KINDS}.")
    if type(document["features"]) is not int or document["features"] < 1:
        raise PackError(f"its number of features is {document['features']!r}.")
    if not isinstance(document["class_names"], list):
        raise PackError("its class names are no list.")


def read_tables(document: dict[str, Any]) -> tuple[dict[str, tuple], dict[str, tuple], dict[str, float]]:
    """Returns the shapes of masks and of batch norm, and the masks' fractions of zeros, each by path.

    Raises:
        PackError: If the description does not hold them as it must.
    """
    tables = []
    for table, keys in (("masks", {"path", "shape", "zeros"}), ("norm", {"path", "shape"})):
        entries = {}
        for entry in document[table] if isinstance(document[table], list) else [None]:
            if not isinstance(entry, dict) or entry.keys() != keys or not isinstance(entry["path"], str):
                raise PackError(f"its table of {table} is wrong.")
            if not isinstance(entry["shape"], list) or entry["path"] in entries:
                raise PackError(f"its table of {table} is wrong at {entry['path']!r}.")
            check_shape(entry["shape"])
            entries[entry["path"]] = entry
        tables.append(entries)
    masks, norm = ({path: tuple(entry["shape"]) for path, entry in table.items()} for table in tables)
    return masks, norm, {path: entry["zeros"] for path, entry in tables[0].items()}


def check_shape(shape: Any) -> None:
    """Raises a `PackError` unless `shape` is a list or tuple of positive integers that is not empty."""
    if not shape or not all(type(side) is int and side > 0 for side in shape):
        raise PackError(f"{shape!r} is no shape of a weight.")


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")
