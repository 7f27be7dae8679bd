"""Version 1 of a pack's file: a tensor of packed bits for every mask. Read for ever, no longer written."""

from typing import Any

import numpy as np

from piggyback_tf.foreign_text import shown
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.base_fit import BaseSpec, Claims, check_fits
from piggyback_tf.packs.bits import MaskBits, packed_shape
from piggyback_tf.packs.container import PackError, PackReader, check_shape, digest_of_content
from piggyback_tf.packs.description import check_fields, fields_of_version, with_defaults

_UINT8, _FLOAT32 = np.dtype("uint8"), np.dtype("float32")
_KEYS = {"codec", "masks", "norm", "features", "checksum"}


def read(reader: PackReader, plain_fields: tuple[str, ...], base: BaseSpec | None) -> dict[str, Any]:
    """Returns the fields of a `TaskPack`.

    Args:
        reader: The file, of which the header has been read.
        plain_fields: The fields that the description holds as they are.
        base: The base that it must fit; it is compared before memory is taken.

    Raises:
        PackError: If anything in the file is not as it must be.
    """
    document = reader.document
    fields = fields_of_version(plain_fields, 1)
    reader.check_keys(_KEYS | set(fields))
    check_fields(with_defaults(document))
    if document["codec"] != "bits":
        raise PackError(f"its masks are coded as {shown(document['codec'])}, and version 1 knows 'bits' only.")
    kind = document["mask_kind"]
    if type(document["features"]) is not int or document["features"] < 1:
        raise PackError(f"its number of features is {shown(document['features'])}.")
    masks, norm = _read_table(document, "masks"), _read_table(document, "norm")
    features, classes = document["features"], len(document["class_names"])
    if base is not None:
        shapes = ({path: tuple(entry["shape"]) for path, entry in table.items()} for table in (masks, norm))
        check_fits(Claims.of(document, features, *shapes), base)
    tensors = reader.tensors(
        {f"mask/{path}": (_UINT8, packed_shape(tuple(entry["shape"]), kind)) for path, entry in masks.items()}
        | {f"norm/{path}": (_FLOAT32, tuple(entry["shape"])) for path, entry in norm.items()}
        | {"head/kernel": (_FLOAT32, (features, classes)), "head/bias": (_FLOAT32, (classes,))}
    )
    if document["checksum"] != digest_of_content(document, tensors):
        raise PackError("its checksum is not that of its content.")
    packed = {path: MaskBits(tuple(entry["shape"]), tensors[f"mask/{path}"]) for path, entry in masks.items()}
    for path, mask in packed.items():
        if mask.zeros != masks[path]["zeros"]:
            raise PackError(f"its fraction of zeros of {shown(path)} is not that of the mask.")
    arrays = TaskArrays(
        mask_kind=kind,
        masks=packed,
        norm={path: tensors[f"norm/{path}"] for path in norm},
        head={name: tensors[f"head/{name}"] for name in ("kernel", "bias")},
    )
    return {field: document[field] for field in fields if field != "mask_kind"} | {"arrays": arrays}


def _read_table(document: dict[str, Any], table: str) -> dict[str, dict[str, Any]]:
    keys = {"path", "shape", "zeros"} if table == "masks" else {"path", "shape"}
    entries: dict[str, dict[str, Any]] = {}
    for entry in document[table] if isinstance(document[table], list) else [None]:
        if not isinstance(entry, dict) or entry.keys() != keys or not isinstance(entry["path"], str):
            raise PackError(f"its table of {table} is wrong.")
        if not isinstance(entry["shape"], list) or entry["path"] in entries:
            raise PackError(f"its table of {table} is wrong at {shown(entry['path'])}.")
        check_shape(entry["shape"])
        entries[entry["path"]] = entry
    return entries
