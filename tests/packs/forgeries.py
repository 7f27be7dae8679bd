"""Forged pack files: made by someone who knows the format, and signed with the right checksum where that is possible.

Shared by the tests and by `benchmarks/fuzz.py`.
"""

import contextlib
import dataclasses
import json
import math
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from piggyback_tf.packs import PackError, TaskPack, container

_UNSIGNED = "0" * 64
# What stands where something else should.
_STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 1.5, 2**31, 2**63, 10**30, 10**400, -(10**400), math.nan, math.inf, 5e-324),
    *("", ".", "../../etc/passwd", "/etc/passwd", "a/../b", "C:\\x", "..\\x", "a\0b", "a\nb", "\x1b[2J", "\ud800"),
    *("\udcff/kernel", "tüvö", "日本", "x" * 5000, "conv/kernel", "bn/gamma", "binary", "ternary", "none", "float16"),
    *([], {}, [[]], [0], [-1], [1, 1], [3, 3], [16, 16], [10**6, 10**6], [2**31, 2**31], [10**4000] * 9, [1] * 100),
    *({"a": {"b": math.nan}}, ["wren"], ["wren", "wren", "rook"], {"test": {"top1_error": "x"}}),
)


@dataclasses.dataclass
class Parts:
    """A file taken apart; everything may be changed.

    Attributes:
        document: The description of the task, as values or as text.
        index: The index, as values or as bytes; None in version 1.
        tensors: The other tensors.
        header: Changes the header before it is written, if given.
    """

    document: dict[str, Any] | str
    index: dict[str, Any] | bytes | None
    tensors: dict[str, np.ndarray]
    header: Callable[[str], str] | None = None

    @classmethod
    def of(cls, data: bytes) -> "Parts":
        """Takes a good file apart."""
        length = int.from_bytes(data[:8], "little")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][container.METADATA_KEY])
        tensors = {name: tensor.copy() for name, tensor in load_tensors(data).items()}
        index = tensors.pop("index", None)
        return cls(document, None if index is None else json.loads(zlib.decompress(index.tobytes())), tensors)

    def to_bytes(self) -> bytes:
        """Returns the bytes of the file."""
        text = self.document if isinstance(self.document, str) else json.dumps(self.document, sort_keys=True)
        tensors = dict(self.tensors)
        if self.index is not None:
            plain = self.index if isinstance(self.index, bytes) else zlib.compress(json.dumps(self.index).encode(), 9)
            tensors["index"] = np.frombuffer(plain, np.uint8)
        data = save_tensors(tensors, {container.METADATA_KEY: text})
        if not self.header:
            return data
        length = int.from_bytes(data[:8], "little")
        changed = self.header(data[8 : 8 + length].decode()).encode("utf-8", "surrogatepass")
        return len(changed).to_bytes(8, "little") + changed + data[8 + length :]

    def sign(self) -> None:
        """Puts in the right checksum, if what the parts hold can be read at all."""
        if not isinstance(self.document, dict) or self._weights() > 10**6:
            return
        with contextlib.suppress(PackError, ValueError, TypeError):
            if self.index is None:
                self.document["checksum"] = container.digest_of_content(self.document, self.tensors)
            else:
                self.document["checksum"] = _UNSIGNED
                pack = _Credulous.from_bytes(self.to_bytes())
                self.document["checksum"] = TaskPack.content_digest(pack)

    def _weights(self) -> int:
        masks = self.index.get("masks") if isinstance(self.index, dict) else None
        shapes = [entry.get("shape") for entry in masks if isinstance(entry, dict)] if isinstance(masks, list) else []
        return sum(
            math.prod(shape)
            for shape in shapes
            if isinstance(shape, list) and all(type(side) is int and side < 1 << 40 for side in shape)
        )


class _Credulous(TaskPack):
    """A pack that believes a checksum of zeros."""

    def content_digest(self) -> str:
        return _UNSIGNED


# What a forger may do, by name: a function of the parts, which it changes.
FORGERIES: dict[str, Callable[[Parts, Random], None]] = {}


def forge_file(data: bytes, name: str, rng: Random) -> bytes:
    """Returns a forged file.

    Args:
        data: A good one.
        name: What is done, one of `FORGERIES`.
        rng: Where everything else is drawn from.
    """
    parts = Parts.of(data)
    FORGERIES[name](parts, rng)
    parts.sign()
    return parts.to_bytes()


def _forgery(function: Callable[[Parts, Random], None]) -> Callable[[Parts, Random], None]:
    FORGERIES[function.__name__.strip("_").replace("_", " ")] = function
    return function


@_forgery
def _description(parts: Parts, rng: Random) -> None:
    """Other values of the description."""
    _spoil(parts.document, rng)


@_forgery
def _description_text(parts: Parts, rng: Random) -> None:
    """JSON that other writers may write, or none."""
    text = json.dumps(parts.document, sort_keys=True)
    key = rng.choice(("task", "settings", "class_names", "threshold", "checksum"))
    parts.document = rng.choice(
        (
            '{"' + key + '": "x", ' + text[1:],
            text[:-1] + ', "' + key + '": 1}',
            text.replace(
                '"settings": {', '"settings": {"x": ' + rng.choice(("NaN, ", "1e999, ", "-Infinity, ", "1e-999, "))
            ),
            text.replace('"settings": {', '"settings": {"x": ' + "[" * 31 + "]" * 31 + ", "),
            text.replace('"settings": {', '"settings": {"x": ' + "[" * 700 + "]" * 700 + ", "),
            text.replace('"settings": {', '"settings": {"x": ' + "9" * rng.choice((400, 4300, 5000)) + ", "),
            text.replace('"settings": {', '"settings": {"x": [' + "[]," * 20_000 + "0], "),
            text.replace("wren", rng.choice(("\\ud800", "\\udcff\\ud800", "\\u0000", "\\u001b[31m", "\ufeff"))),
            "[" * rng.choice((20, 100_000)),
            "\ufeff" + text,
            text + " {}",
            "[" + text + "]",
            text[: rng.randrange(len(text) + 1)],
            "",
        )
    )


@_forgery
def _header(parts: Parts, rng: Random) -> None:
    """A header of safetensors that does not describe what follows."""

    def change(text: str) -> str:
        header = json.loads(text)
        name = rng.choice(sorted(header.keys() - {"__metadata__"}))
        entry = header[name]
        start, end = entry["data_offsets"]
        huge = rng.choice((1 << 31, 1 << 62, 10**30))
        offsets = (
            *([0, end - start], [start, end + 1], [start + 1, end], [end, start], [-1, end], [-end, -start]),
            *([start, huge], [huge, huge + end - start], [0, 0], [start], [float(start), float(end)], "0", None),
        )
        action = rng.randrange(8)
        if action == 0:
            entry["data_offsets"] = rng.choice(offsets)
        elif action == 1:
            entry["shape"] = rng.choice(
                (_strange(rng), entry["shape"][::-1], [math.prod(entry["shape"])], [huge, huge])
            )
        elif action == 2:
            entry["dtype"] = rng.choice(("F64", "U64", "BF16", "F8_E4M3", "BOOL", "I8", "", _strange(rng)))
        elif action == 3:
            _spoil(rng.choice((header, entry)), rng)
        elif action == 4:
            return f"{{{json.dumps(name)}:{json.dumps(entry)},{text[1:]}"
        elif action == 5:
            return text[:-1] + ',"__metadata__":{"' + container.METADATA_KEY + '":"{}"}}'
        elif action == 6:
            return rng.choice(
                (" " * 9 + text, text + "\n" * 99, text + "\0", "[" * 99_999, text[:-1] + ',"x":' + "[" * 200)
            )
        else:
            header["__metadata__"]["more"] = rng.choice(("", "x" * 100_000, _strange(rng)))
        return json.dumps(header)

    parts.header = change


@_forgery
def _index_values(parts: Parts, rng: Random) -> None:
    """Other lines of the index, or others in their places."""
    tables = parts.document if parts.index is None else parts.index
    table = tables.get(rng.choice(("masks", "norm", "parts")))
    if not isinstance(table, list) or not table or rng.random() < 0.1:
        return _spoil(tables, rng)
    action = rng.randrange(6)
    if action == 0:
        table.append(rng.choice(table))
    elif action == 1:
        del table[rng.randrange(len(table))]
    elif action == 2:
        rng.shuffle(table)
    elif isinstance(entry := rng.choice(table), dict):
        _spoil(entry, rng)
    else:
        table[0] = _strange(rng)
    return None


@_forgery
def _claims(parts: Parts, rng: Random) -> None:
    """Shapes that are not those of the weights, in lines that agree with themselves."""
    table = (parts.document if parts.index is None else parts.index).get("masks")
    if not table:
        return _description(parts, rng)
    entry = rng.choice(table)
    shape = entry["shape"]
    larger = [side * rng.choice((1, 1, 2, 10)) for side in shape]
    shape = rng.choice(
        (shape[::-1], [math.prod(shape)], [*shape, 1], [1, *shape], larger, [1 << 20, 1 << 20], [10**12])
    )
    entry["shape"] = shape
    if parts.index is not None:
        entry["zeros"] = rng.choice((entry["zeros"], 0, math.prod(shape)))
        entry["codec"] = rng.choice((entry["codec"], "ans", "bits"))
        if rng.random() < 0.5:
            entry["classes"] = [rng.randrange(1, 18), rng.randrange(1, 18)]
    return None


@_forgery
def _index_bytes(parts: Parts, rng: Random) -> None:
    """Something else than a compressed index, or one that grows when it is unpacked."""
    text = json.dumps(parts.index).encode()
    good = zlib.compress(text)
    # Functions, of which only one is called.
    ways: tuple[Callable[[], bytes], ...] = (
        *(lambda way=way: way for way in (b"", text, good[:-1], good[2:-4], good + b"x", good + good)),
        lambda: zlib.compress(good),
        lambda: zlib.compress(b" " * 10**7 + text),
        lambda: zlib.compress(b'{"masks":[' + b"[]," * 10**6),
        lambda: zlib.compress(b'{"masks":[],"norm":[' + b"{}," * rng.randrange(300, 30_000) + b"{}]}"),
        lambda: zlib.compress(b"[" * 10**6),
        lambda: zlib.compress(text[:-1] + b',"masks":[]}'),
        lambda: zlib.compress(text.replace(b"path", b"p\xff")),
        lambda: zlib.compress(text.replace(b": [", b": [" + b"1" * 4000 + b", ")),
    )
    parts.index = rng.choice(ways)()


@_forgery
def _coded_masks(parts: Parts, rng: Random) -> None:
    """Other rates, stream and bits than the encoder wrote."""
    found = [name for name in parts.tensors if name.startswith(("masks/", "mask/"))]
    name = rng.choice(found or ["masks/stream"])
    dtype = {"masks/stream": "uint32"}.get(name, "uint8")
    values = parts.tensors.get(name, np.zeros(3, dtype))
    top = np.iinfo(dtype).max
    action = rng.randrange(6)
    if action == 0:
        parts.tensors[name] = values[: rng.randrange(values.shape[0] + 1)]
    elif action == 1:
        parts.tensors[name] = np.resize(values, (values.shape[0] + rng.randrange(1, 300), *values.shape[1:]))
    elif action == 2:
        parts.tensors[name] = np.random.default_rng(rng.randrange(1 << 30)).integers(0, top, values.shape, dtype, True)
    elif values.size:
        for _ in range(rng.choice((1, 1, 1, 9))):
            values.flat[rng.randrange(values.size)] = rng.choice((0, 1, 2, top - 2, top - 1, top, rng.randrange(top)))


@_forgery
def _tensors(parts: Parts, rng: Random) -> None:
    """Tensors that are missing, additional, or of other shapes, types and numbers."""
    name = rng.choice(sorted(parts.tensors))
    value = parts.tensors[name]
    action = rng.randrange(6)
    if action == 0:
        del parts.tensors[name]
    elif action == 1:
        parts.tensors[rng.choice(("x", "../../x", "mask/conv/kernel", "index2", ""))] = value
    elif action == 2:
        with np.errstate(all="ignore"):
            parts.tensors[name] = value.astype(rng.choice(("float64", "float16", "float32", "int32", "uint8")))
    elif action == 3:
        parts.tensors[name] = rng.choice((value.reshape(-1), value[None], value[:1], value[:0], value.T.copy()))
    elif value.size:
        value.flat[rng.randrange(value.size)] = rng.choice(
            (0, 1, 7) if value.dtype.kind == "u" else (0, np.nan, np.inf, 7)
        )


def _strange(rng: Random) -> Any:
    return json.loads(json.dumps(rng.choice(_STRANGE)))


def _spoil(values: Any, rng: Random) -> None:
    """Takes an entry out of a dict, gives it another value or name, or adds one; somewhere within."""
    if not isinstance(values, dict) or not values:
        return
    key = rng.choice(sorted(values))
    action = rng.randrange(5)
    if action == 0:
        del values[key]
    elif action == 1:
        values[str(rng.choice(_STRANGE))[:9]] = values[key]
    elif action == 2 and isinstance(values[key], dict):
        _spoil(values[key], rng)
    else:
        values[key] = _strange(rng)
