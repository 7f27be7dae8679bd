"""The container of a task pack, of any version: a safetensors file with one JSON document as metadata.

What the versions hold in it is in `format1.py` and `format2_to_6.py`. safetensors writes several metadata entries in
an order that changes from run to run, hence the single entry. Every check that a header allows is made before the
tensors are read.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize

from piggyback_tf.foreign_text import shown

METADATA_KEY = "piggyback_tf.task_pack"
FORMAT_VERSION = 6
# Longer files are not read, whatever they say: a pack of every weight of the largest network has a tenth of that.
LARGEST_FILE = 1 << 31
# A header this long describes 20,000 classes and a thousand layers, and takes little memory when it is parsed.
_LARGEST_HEADER = 1 << 22
# How deeply JSON may be nested.
_DEEPEST = 32
_DTYPES = {
    "U8": np.dtype("uint8"),
    "U16": np.dtype("<u2"),
    "U32": np.dtype("<u4"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
# A shape that a tensor must have, how long a vector may be at most, or None for any shape of a weight.
Shape = tuple[int, ...] | int | None


class PackError(ValueError):
    """A task pack that cannot be used, with the reason."""


class PackFileError(PackError):
    """A `PackError` whose message names the file."""


def canonical_json(value: object) -> str:
    """Returns `value` as JSON that is the same for equal values: sorted keys, ASCII, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_number)


def parse_json(text: str | bytes) -> dict[str, Any]:
    """Returns the object that a JSON text holds.

    Raises:
        ValueError: If it is no JSON, no object, or what `check_json` refuses.
    """
    try:
        value = json.loads(text if isinstance(text, str) else text.decode("utf-8"), object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("it is no object")
    check_json(value)
    return value


def check_json(value: Any) -> None:
    """Checks JSON values for what this format does not allow, though Python's JSON library reads and writes it.

    Raises:
        ValueError: If they are nested too deeply, or hold a number that is not finite or a text that is no Unicode.
    """
    level = [value]
    for _ in range(_DEEPEST):
        for item in level:
            if isinstance(item, str) and not item.isascii():
                # Half of a surrogate pair can be written in JSON, and neither printed nor encoded.
                item.encode("utf-8")
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{item} is no JSON number")
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in ((*item, *item.values()) if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError("it is nested too deeply")


def digest_of_content(document: dict, tensors: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of a document without `created` and `checksum`, and of tensors."""
    content = {key: value for key, value in document.items() if key not in ("created", "checksum")}
    result = hashlib.sha256(canonical_json(content).encode("ascii"))
    for name, tensor in sorted(tensors.items()):
        # The description is framed by zero bytes, which JSON in ASCII cannot hold.
        description = canonical_json([name, tensor.dtype.name, list(tensor.shape)])
        result.update(b"\0" + description.encode("ascii") + b"\0")
        result.update(np.ascontiguousarray(tensor).data)
    return result.hexdigest()


def to_bytes(document: dict, tensors: dict[str, np.ndarray]) -> bytes:
    """Returns the bytes of a pack's file.

    Raises:
        PackError: If the description is too long.
    """
    # Contiguous and little-endian, as safetensors wants them.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    data = serialize(tensors, metadata={METADATA_KEY: canonical_json(document)})
    if (length := int.from_bytes(data[:8], "little")) > _LARGEST_HEADER:
        raise PackError(f"The description of the task takes {length:,} bytes; at most {_LARGEST_HEADER:,} can be read.")
    return data


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
        self._stream, self.size, self._name = stream, size, name
        self._start = stream.read(8)
        length = int.from_bytes(self._start, "little")
        if len(self._start) < 8 or not 2 <= length <= size - 8:
            raise self.error("is no task pack, or only a part of one: its header does not fit into the file")
        if length > _LARGEST_HEADER:
            raise self.error(f"has a header of {length:,} bytes, and a task pack's has at most {_LARGEST_HEADER:,}")
        self._header = stream.read(length)
        self._entries = self._parse(self._header, "header")
        metadata = self._entries.pop("__metadata__", None)
        text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise self.error("is a safetensors file, but no task pack: it does not describe a task")
        self.document = self._parse(text, "description of the task")
        self.version = self.document.get("format_version")
        if type(self.version) is not int or self.version < 1:
            raise self.error(f"has the format version {shown(self.version)}, which is no version")
        if self.version > FORMAT_VERSION:
            raise self.error(
                f"has format version {shown(self.version)}, and this version of piggyback_tf reads up to "
                f"{FORMAT_VERSION}: upgrade piggyback_tf"
            )

    def error(self, what: str) -> PackFileError:
        """Returns an error about this file; `what` goes on after the file's name."""
        return PackFileError(f"The file {self._name!r} {what}.")

    def check_keys(self, keys: set[str]) -> None:
        """Checks that the description has these entries and no others.

        Raises:
            PackError: If not.
        """
        if missing := sorted(keys - self.document.keys()):
            raise PackError(f"its description has no entry {shown(missing[0])}.")
        if extra := sorted(self.document.keys() - keys):
            raise PackError(f"its description has an entry {shown(extra[0])} that is not part of the format.")

    @property
    def names(self) -> list[str]:
        """The names of the tensors that the file holds."""
        return list(self._entries)

    def first_side(self, name: str) -> int:
        """Returns the first side of a tensor's shape, at least 1; 1 if it has none, which `tensors` then refuses."""
        entry = self._entries.get(name)
        shape = entry.get("shape") if isinstance(entry, dict) else None
        return shape[0] if isinstance(shape, list) and shape and type(shape[0]) is int and shape[0] > 0 else 1

    def tensors(self, expected: Mapping[str, tuple[np.dtype, Shape]]) -> dict[str, np.ndarray]:
        """Returns the tensors.

        Args:
            expected: Name to dtype and shape of every tensor that the description asks for.

        Raises:
            PackFileError: If the file holds others.
        """
        if missing := sorted(expected.keys() - self._entries.keys()):
            raise self.error(f"lacks the tensor {shown(missing[0])}")
        if extra := sorted(self._entries.keys() - expected.keys()):
            raise self.error(f"should not hold the tensor {shown(extra[0])}")
        shapes = {name: self._checked_shape(name, *wanted) for name, wanted in expected.items()}
        content = sum(dtype.itemsize * math.prod(shapes[name]) for name, (dtype, _) in expected.items())
        length = len(self._start) + len(self._header) + content
        if self.size != length:
            raise self.error(f"should be {length} bytes long and is {self.size}: it is cut off or damaged")
        if self.size > LARGEST_FILE:
            raise self.error(f"is {self.size:,} bytes long, and a task pack has at most {LARGEST_FILE:,}")
        try:
            entries = deserialize(self._start + self._header + self._stream.read())
        except SafetensorError as error:
            raise self.error(f"is damaged: safetensors says {shown(str(error))}") from error
        return {name: np.frombuffer(entry["data"], expected[name][0]).reshape(shapes[name]) for name, entry in entries}

    def _checked_shape(self, name: str, dtype: np.dtype, shape: Shape) -> tuple[int, ...]:
        entry = self._entries[name]
        kind, found = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        good = _DTYPES.get(kind if isinstance(kind, str) else "") == dtype and isinstance(found, list)
        if shape is None:
            good = good and _is_shape(found)
        elif isinstance(shape, int):
            good = good and len(found) == 1 and type(found[0]) is int and 0 <= found[0] <= shape
        else:
            good = good and found == list(shape)
        if not good:
            wanted = f"a vector of at most {shape:,}" if isinstance(shape, int) else list(shape or ["any"])
            raise self.error(f"has the tensor {name!r} as {shown(kind)} {shown(found)}, not as {dtype} {wanted}")
        return tuple(found)

    def _parse(self, text: str | bytes, what: str) -> dict:
        try:
            return parse_json(text)
        except ValueError as error:
            raise self.error(f"is no task pack, or a damaged one: its {what} is not a JSON object: {error}") from error


def check_shape(shape: Any) -> None:
    """Raises a `PackError` unless `shape` is a list or tuple of one to eight positive integers below 2^31."""
    if not _is_shape(shape):
        raise PackError(f"{shown(shape)} is no shape of a weight.")


def _is_shape(shape: Any) -> bool:
    good = isinstance(shape, list | tuple) and 1 <= len(shape) <= 8
    return good and all(type(side) is int and 0 < side < 1 << 31 for side in shape)


def check_path(path: Any) -> None:
    """Raises a `PackError` unless `path` can be the canonical path of a weight, such as `"conv1/kernel"`."""
    parts = path.split("/") if isinstance(path, str) else [""]
    if not {"", ".", ".."}.isdisjoint(parts) or "\\" in path or any(ord(character) < 32 for character in path):
        raise PackError(
            f"{shown(path)} is no path of a weight: names with slashes between them, none of them empty, '.' or "
            "'..'; no backslashes, no control characters."
        )


def _number(value: object) -> object:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"it has {shown(key)} twice")
        result[key] = value
    return result
