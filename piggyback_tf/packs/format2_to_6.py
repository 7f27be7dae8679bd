"""Versions 2 to 6 of a pack's file: entropy-coded masks in one stream, and one index; see `docs/pack-format.md`.

Versions 3 and 4 have more entries in the description than the one before, 5 has parts, and 6 affine masks among them.
A pack is written in version 4, which older programs read, in 5 only if it has parts, and in 6 if masks are affine.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from piggyback_tf.foreign_text import shown
from piggyback_tf.packs import codec, container, parts
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.base_fit import BaseSpec, Claims, check_fits
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.container import PackError, PackReader, Shape
from piggyback_tf.packs.description import check_fields, fields_of_version, head_spec_of, with_defaults
from piggyback_tf.packs.partition import MAX_CLASSES

# Without a base to compare with, a file is believed so many weights (VGG19 has 140 million), or so many for each of its
# bytes: larger networks, of which it drops more than next to nothing.
MAX_WEIGHTS, MAX_WEIGHTS_PER_BYTE = 150_000_000, 32
# Characters of the index, and numbers of rates; the networks with most layers need a tenth of it.
_MAX_INDEX, _MAX_RATES = 1 << 20, 1 << 18
# Vectors of this length cost nothing: what is too long in them for a small base gets an error that says more.
_SHORT = 1 << 10
# Characters of a line of the index, but for its path, of which every character may be written as "\\u0000".
_INDEX_LINE = 256
# The first version with parts, and the first in which masks can be affine.
_WITH_PARTS, _WITH_AFFINE = 5, 6
_UINT8, _UINT32 = np.dtype("uint8"), np.dtype("<u4")
_FLOAT: dict[str, np.dtype] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def version_of(arrays: TaskArrays) -> int:
    """Returns the format version in which arrays are written."""
    roles = {parts.split_name(name)[0] for name in arrays.parts}
    return _WITH_AFFINE if parts.AFFINE in roles else _WITH_PARTS if roles else _WITH_PARTS - 1


def write(arrays: TaskArrays, plain: dict[str, Any], checksum: str, codec_name: str) -> bytes:
    """Returns the bytes of a pack's file.

    Args:
        arrays: What it holds.
        plain: What it says of them, as JSON values.
        checksum: The digest of its content.
        codec_name: How to code the masks, see `codec.encode`.

    Raises:
        PackError: If there is more to describe than can be read.
    """
    masks = codec.encode(arrays.masks, arrays.mask_kind, codec_name)
    dtype = _FLOAT[plain["dtype"]]
    index = {
        "masks": [codec.layer_entry(layer) for layer in masks.layers],
        "norm": [{"path": path, "shape": list(value.shape)} for path, value in arrays.norm.items()],
    }
    if arrays.parts:
        index["parts"] = [
            dict(zip(("role", "path"), parts.split_name(name), strict=True), shape=list(value.shape))
            for name, value in arrays.parts.items()
        ]
    text = container.canonical_json(index).encode("ascii")
    for what, size, most in (
        ("characters to list its weights", len(text), _MAX_INDEX),
        ("rates for its masks", masks.rates.size, _MAX_RATES),
    ):
        if size > most:
            raise PackError(f"The pack takes {size:,} {what}; at most {most:,} can be read.")
    tensors = {f"head/{name}": value.astype(dtype) for name, value in arrays.head.items()}
    tensors["index"] = np.frombuffer(zlib.compress(text, 9), np.uint8)
    for name, array in _mask_arrays(masks).items():
        if array.size:
            tensors[name] = array
    if arrays.norm:
        tensors["norm"] = _joined(arrays.norm, dtype)
    if arrays.parts:
        tensors["parts"] = _joined(arrays.parts, dtype)
    return container.to_bytes({**plain, "format_version": version_of(arrays), "checksum": checksum}, tensors)


def read(reader: PackReader, plain_fields: tuple[str, ...], base: BaseSpec | None) -> tuple[dict[str, Any], str]:
    """Returns the fields of a `TaskPack`, and the digest that its content must have.

    Args:
        reader: The file, of which the header has been read.
        plain_fields: The fields that the description holds as they are.
        base: The base that it must fit; it is compared before memory is taken.

    Raises:
        PackError: If anything in the file is not as it must be.
    """
    reader.check_keys({*fields_of_version(plain_fields, reader.version), "checksum"})
    document = with_defaults(reader.document)
    check_fields(document)
    kind, names = document["mask_kind"], document["class_names"]
    spec = head_spec_of(document)
    features = reader.first_side("head/kernel") if spec.is_dense else None
    if base is not None:
        check_fits(Claims.of(document, features, {}, {}), base)
    limits = _limits(reader, base, 2 if kind == "ternary" else 1)
    dtype = _FLOAT[document["dtype"]]
    tensors = reader.tensors(_expected_head(reader, features, len(names), dtype) | _expected(reader, dtype, limits))
    layers, norm_shapes, part_shapes = _read_index(tensors["index"], limits["index"], reader.version)
    head = {name[5:]: array.astype(np.float32) for name, array in tensors.items() if name.startswith("head/")}
    weights = sum(layer.size for layer in layers)
    if base is not None:
        shapes = {layer.path: layer.shape for layer in layers}
        check_fits(Claims.of(document, features, shapes, norm_shapes, part_shapes), base)
    elif weights > (believed := max(MAX_WEIGHTS, MAX_WEIGHTS_PER_BYTE * reader.size)):
        raise PackError(
            f"it has masks for {weights:,} weights. More than {believed:,} are read from a file of its size only when "
            "the base is given, with which they are compared first."
        )
    arrays = TaskArrays(
        mask_kind=kind,
        masks=_decode(tensors, layers, kind),
        norm=_split(tensors.get("norm"), norm_shapes, "batch norm"),
        head=head,
        parts=_split(tensors.get("parts"), part_shapes, "its parts"),
    )
    described = {field: document[field] for field in plain_fields if field != "mask_kind"}
    return {**described, "head_spec": spec, "arrays": arrays}, document["checksum"]


def _limits(reader: PackReader, base: BaseSpec | None, planes: int) -> dict[str, int]:
    """Returns how long the vectors may be: what a mask over every weight of the base could need."""
    if base is None:
        unknown = dict.fromkeys(("masks/stream", "masks/bits", "norm", "parts"), reader.size)
        return unknown | {"index": _MAX_INDEX, "masks/rates": _MAX_RATES}
    sizes = [math.prod(shape) for shape in base.shapes.values()]
    limits = {
        "index": min(_MAX_INDEX, sum(_INDEX_LINE + 6 * len(path) for path in base.shapes)),
        "masks/rates": min(_MAX_RATES, (MAX_CLASSES + 1) ** 2 * len(sizes)),
        # Twice as long as the packed bits: no encoder takes so many words.
        "masks/stream": planes * sum(sizes) // 16,
        "masks/bits": planes * sum(-(-size // 8) for size in sizes),
        "norm": sum(sizes),
        # Of the largest rank, two factors have twice as many numbers as a square kernel.
        "parts": 4 * sum(sizes),
    }
    return {name: max(limit, _SHORT) for name, limit in limits.items()}


def _mask_arrays(masks: codec.EncodedMasks) -> dict[str, np.ndarray]:
    return {
        "masks/rates": masks.rates,
        "masks/stream": masks.stream.astype(_UINT32, copy=False),
        "masks/bits": masks.raw,
    }


def _expected_head(
    reader: PackReader, features: int | None, classes: int, dtype: np.dtype
) -> dict[str, tuple[np.dtype, Shape]]:
    """Returns what tensors of a head there must be; those of one that is not dense are known to its network only."""
    if features is not None:
        return {"head/kernel": (dtype, (features, classes)), "head/bias": (dtype, (classes,))}
    return {name: (dtype, None) for name in reader.names if name.startswith("head/")}


def _expected(reader: PackReader, dtype: np.dtype, limits: dict[str, int]) -> dict[str, tuple[np.dtype, Shape]]:
    """Returns what tensors there must be beside the head; those that may be missing only if they are there."""
    kinds: dict[str, np.dtype] = {
        "index": _UINT8,
        "masks/rates": _UINT8,
        "masks/stream": _UINT32,
        "masks/bits": _UINT8,
        "norm": dtype,
        "parts": dtype,
    }
    there = {"index", *reader.names}
    return {name: (kind, limits[name]) for name, kind in kinds.items() if name in there}


_Shapes = dict[str, tuple[int, ...]]


def _read_index(compressed: np.ndarray, limit: int, version: int) -> tuple[list[codec.CodedLayer], _Shapes, _Shapes]:
    """Returns the coded masks, and the shapes of batch norm by path and of parts by name."""
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(compressed.tobytes(), limit)
        if not unpacker.eof or unpacker.unused_data:
            raise PackError("its index is cut off, too long, or followed by something else.")
        index = container.parse_json(text)
    except (zlib.error, ValueError) as error:
        raise error if isinstance(error, PackError) else PackError(f"its index cannot be read: {error}.") from error
    tables = {"masks", "norm"} | ({"parts"} if version >= _WITH_PARTS else set())
    if index.keys() != tables or not all(isinstance(table, list) for table in index.values()):
        raise PackError(f"its index does not list masks and batch norm{', and parts' * ('parts' in tables)}, or more.")
    if "parts" in tables and not index["parts"]:
        raise PackError("its index lists no parts, and without them a pack is of an older version.")
    try:
        layers = [codec.check_layer(entry) for entry in index["masks"]]
    except ValueError as error:
        raise PackError(str(error)) from error
    norm = _read_table(index["norm"], ("path",), "batch norm")
    others = _read_table(index.get("parts", []), ("role", "path"), "parts")
    if len({layer.path for layer in layers}) != len(layers):
        raise PackError("its index lists a weight twice.")
    parts.check_parts(others)
    if any(parts.AFFINE in roles for roles in parts.changed_weights(others).values()) != (version >= _WITH_AFFINE):
        raise PackError(f"its index makes masks affine if it is of version {_WITH_AFFINE}, and then alone.")
    return layers, norm, others


def _read_table(table: list, keys: tuple[str, ...], what: str) -> _Shapes:
    """Returns the shapes that a list of the index names, by its other entries with a slash between them."""
    shapes: _Shapes = {}
    for entry in table:
        if not isinstance(entry, dict) or entry.keys() != {*keys, "shape"}:
            raise PackError(f"its index of {what} is wrong.")
        if not all(isinstance(entry[key], str) for key in keys):
            raise PackError(f"its index of {what} is wrong.")
        if entry.get("role", parts.ROLES[0]) not in parts.ROLES:
            raise PackError(f"its index has a part of the role {shown(entry['role'])}, which is none of {parts.ROLES}.")
        if not isinstance(entry["shape"], list):
            raise PackError(f"its index is wrong at {shown(entry['path'])}.")
        container.check_shape(entry["shape"])
        shapes["/".join(entry[key] for key in keys)] = tuple(entry["shape"])
    if len(shapes) != len(table):
        raise PackError("its index lists a weight twice.")
    return shapes


def _decode(tensors: dict[str, np.ndarray], layers: list[codec.CodedLayer], kind: str) -> dict[str, MaskBits]:
    if (kind == "none") != (not layers):
        raise PackError(f"its mask kind is {kind!r}, and its index lists {len(layers)} masks.")
    arrays = {
        "rates": tensors.get("masks/rates", np.zeros(0, np.uint8)),
        "stream": tensors.get("masks/stream", np.zeros(0, np.uint32)),
        "raw": tensors.get("masks/bits", np.zeros(0, np.uint8)),
    }
    if not layers:
        if any(array.size for array in arrays.values()):
            raise PackError("it has coded masks that its index does not list.")
        return {}
    try:
        return codec.EncodedMasks(kind, tuple(layers), **arrays).decode()
    except ValueError as error:
        raise PackError(str(error)) from error


def _joined(arrays: Mapping[str, np.ndarray], dtype: np.dtype) -> np.ndarray:
    """Returns the vector of arrays one after another."""
    return np.concatenate([value.reshape(-1) for value in arrays.values()]).astype(dtype)


def _split(values: np.ndarray | None, shapes: _Shapes, what: str) -> dict[str, np.ndarray]:
    """Returns the arrays, float32, of the vector that holds them one after another."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) != (0 if values is None else values.size):
        raise PackError(f"it has more or fewer numbers of {what} than its index lists.")
    result, start = {}, 0
    for (path, shape), size in zip(shapes.items(), sizes, strict=True):
        result[path] = values[start : start + size].astype(np.float32).reshape(shape)
        start += size
    return result
