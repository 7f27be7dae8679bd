"""Version 2 of the file format: entropy-coded masks in one stream, and one index; see `docs/pack-format.md`."""

import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.packs import codec, fileformat
from piggyback_tf.packs.bits import MASK_VALUES, MaskBits
from piggyback_tf.packs.fileformat import PackError, PackReader, Shape
from piggyback_tf.packs.fit import BaseSpec, Claims, check_fits

if TYPE_CHECKING:
    from piggyback_tf.packs.pack import TaskPack

DTYPES = ("float32", "float16")
# Without a base to compare with, no more weights than this are believed: decoded, they are 64 MiB.
MAX_WEIGHTS = 1 << 29
# Of the index as text; the networks with most layers need a tenth of it.
_MAX_INDEX = 1 << 20
_UINT8, _UINT16, _UINT32 = np.dtype("uint8"), np.dtype("<u2"), np.dtype("<u4")
_FLOAT = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}


def write(pack: "TaskPack", plain: dict[str, Any], checksum: str, codec_name: str) -> bytes:
    """Returns the bytes of a pack's file.

    Args:
        pack: The pack; only its arrays are looked at.
        plain: Its other fields, as JSON values.
        checksum: The digest of its content.
        codec_name: How to code the masks, see `codec.encode`.
    """
    masks = codec.encode(pack.masks, pack.mask_kind, codec_name)
    dtype = _FLOAT[pack.dtype]
    index = {
        "masks": [codec.layer_entry(layer) for layer in masks.layers],
        "norm": [{"path": path, "shape": list(value.shape)} for path, value in pack.norm.items()],
    }
    tensors = {f"head/{name}": value.astype(dtype) for name, value in pack.head.items()}
    tensors["index"] = np.frombuffer(zlib.compress(fileformat.canonical_json(index).encode("ascii"), 9), np.uint8)
    for name, array in _mask_arrays(masks).items():
        if array.size:
            tensors[name] = array
    if pack.norm:
        tensors["norm"] = np.concatenate([value.reshape(-1) for value in pack.norm.values()]).astype(dtype)
    return fileformat.to_bytes({**plain, "format_version": 2, "checksum": checksum}, tensors)


def read(reader: PackReader, plain_fields: tuple[str, ...], base: BaseSpec | None) -> tuple[dict[str, Any], str]:
    """Returns the fields of a `TaskPack`, and the digest that its content must have.

    Args:
        reader: The file, of which the header has been read.
        plain_fields: The fields that the description holds as they are.
        base: The base that it must fit; it is compared before memory is taken.

    Raises:
        PackError: If anything in the file is not as it must be.
    """
    document = reader.document
    reader.check_keys({*plain_fields, "checksum"})
    kind, names = document["mask_kind"], document["class_names"]
    if kind not in ("none", *MASK_VALUES):
        raise PackError(f"its mask kind is {kind!r}.")
    if document["dtype"] not in DTYPES:
        raise PackError(f"its numbers are of type {document['dtype']!r}, none of {', '.join(DTYPES)}.")
    if not isinstance(names, list) or not names:
        raise PackError("its class names are no list.")
    tensors = reader.tensors(_expected(reader, len(names), _FLOAT[document["dtype"]]))
    layers, norm_shapes = _read_index(tensors["index"])
    head = {name: tensors[f"head/{name}"].astype(np.float32) for name in ("kernel", "bias")}
    if base is not None:
        text_fields = ("task", "base_name", "base_weights", "base_hash")
        if wrong := [field for field in text_fields if not isinstance(document[field], str)]:
            raise PackError(f"{wrong[0]} must be a text. Received: {document[wrong[0]]!r}.")
        check_fits(
            Claims(
                **{field: document[field] for field in text_fields},
                image_size=document["image_size"],
                features=head["kernel"].shape[0],
                masks={layer.path: layer.shape for layer in layers},
                norm=norm_shapes,
            ),
            base,
        )
    elif (weights := sum(layer.size for layer in layers)) > MAX_WEIGHTS:
        raise PackError(
            f"it has masks for {weights:,} weights. More than {MAX_WEIGHTS:,} are read only when the base is given, "
            "with which they are compared first."
        )
    fields = {field: document[field] for field in plain_fields}
    masks = _decode(tensors, layers, kind)
    return {**fields, "masks": masks, "norm": _split(tensors.get("norm"), norm_shapes), "head": head}, document[
        "checksum"
    ]


def _mask_arrays(masks: codec.EncodedMasks) -> dict[str, np.ndarray]:
    return {
        "masks/probabilities": masks.probabilities.astype(_UINT16, copy=False),
        "masks/stream": masks.stream.astype(_UINT32, copy=False),
        "masks/bits": masks.raw,
    }


def _expected(reader: PackReader, classes: int, dtype: np.dtype) -> dict[str, tuple[np.dtype, Shape]]:
    """Returns what tensors there must be; those that may be missing only if they are there."""
    features = reader.first_side("head/kernel")
    expected: dict[str, tuple[np.dtype, Shape]] = {
        "head/kernel": (dtype, (features, classes)),
        "head/bias": (dtype, (classes,)),
        "index": (_UINT8, None),
    }
    optional = {"masks/probabilities": _UINT16, "masks/stream": _UINT32, "masks/bits": _UINT8, "norm": dtype}
    return expected | {name: (kind, None) for name, kind in optional.items() if reader.has(name)}


def _read_index(compressed: np.ndarray) -> tuple[list[codec.CodedLayer], dict[str, tuple[int, ...]]]:
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(compressed.tobytes(), _MAX_INDEX)
        if not unpacker.eof or unpacker.unused_data:
            raise PackError("its index is cut off, too long, or followed by something else.")
        index = fileformat.parse_json(text)
    except (zlib.error, ValueError) as error:
        raise error if isinstance(error, PackError) else PackError("its index cannot be read.") from error
    if index.keys() != {"masks", "norm"} or not all(isinstance(table, list) for table in index.values()):
        raise PackError("its index does not list masks and batch norm.")
    try:
        layers = [codec.check_layer(entry) for entry in index["masks"]]
    except ValueError as error:
        raise PackError(str(error)) from error
    norm = {}
    for entry in index["norm"]:
        if not isinstance(entry, dict) or entry.keys() != {"path", "shape"} or not isinstance(entry["path"], str):
            raise PackError("its index of batch norm is wrong.")
        if not isinstance(entry["shape"], list):
            raise PackError(f"its index is wrong at {entry['path']!r}.")
        fileformat.check_shape(entry["shape"])
        norm[entry["path"]] = tuple(entry["shape"])
    if len(norm) != len(index["norm"]) or len({layer.path for layer in layers}) != len(layers):
        raise PackError("its index lists a weight twice.")
    return layers, norm


def _decode(tensors: dict[str, np.ndarray], layers: list[codec.CodedLayer], kind: str) -> dict[str, MaskBits]:
    if (kind == "none") != (not layers):
        raise PackError(f"its mask kind is {kind!r}, and its index lists {len(layers)} masks.")
    arrays = {
        "probabilities": tensors.get("masks/probabilities", np.zeros(0, np.uint16)),
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


def _split(values: np.ndarray | None, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Returns the variables of batch norm, float32, from the vector that holds them one after another."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    if sum(sizes) != (0 if values is None else values.size):
        raise PackError("it has more or fewer numbers of batch norm than its index lists.")
    result, start = {}, 0
    for (path, shape), size in zip(shapes.items(), sizes, strict=True):
        result[path] = values[start : start + size].astype(np.float32).reshape(shape)
        start += size
    return result
