"""Writes the manifest of a base: for patchers as a binary file, for people as JSON. See `docs/edge-format.md`."""

import hashlib
from collections.abc import Sequence
from typing import Any

from ...edge.piggyback_edge import (
    DTYPES,
    KINDS,
    MANIFEST_HEADER,
    MANIFEST_MAGIC,
    QUANTIZATIONS,
    RECORD,
    SIGNATURE,
    Entry,
    Manifest,
    Signature,
)

_CODES = {dtype: code for code, dtype in DTYPES.items()}
KIND_CODES = {name: code for code, name in KINDS.items()}


def manifest_bytes(manifest: Manifest) -> bytes:
    """Returns the content of `manifest.bin`; `Manifest.from_bytes` reads it."""
    records = b"".join([*map(_record, manifest.entries), *map(_signature, manifest.graphs)])
    header = MANIFEST_HEADER.pack(
        MANIFEST_MAGIC,
        manifest.version,
        len(manifest.entries),
        MANIFEST_HEADER.size + len(records) + hashlib.sha256().digest_size,
        manifest.base_size,
        manifest.base_sha256,
        manifest.base_hash,
        manifest.features,
        manifest.max_classes,
        manifest.image_size,
        QUANTIZATIONS.index(manifest.quantize),
        manifest.task_place,
        len(manifest.graphs),
        bytes(4),
    )
    return header + records + hashlib.sha256(header + records).digest()


def manifest_json(manifest: Manifest, details: Sequence[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """Returns what `manifest.json` holds: the manifest, and what else is known.

    Args:
        manifest: The manifest.
        details: For each entry what the binary manifest does not hold of it.
        about: What else is known of the export.
    """
    entries = [
        {
            "kind": KINDS[entry.kind],
            "type": entry.dtype.name,
            "offset": entry.offset,
            "bytes": entry.nbytes,
            "channels": entry.channels,
            "inner": entry.inner,
            "tensor": entry.tensor,
        }
        | ({"scale_offset": entry.scale_offset, "scale_count": entry.scale_count} if entry.scale_count else {})
        | detail
        for entry, detail in zip(manifest.entries, details, strict=True)
    ]
    return {
        "format": manifest.version,
        "base_sha256": manifest.base_sha256.hex(),
        "base_hash": manifest.base_hash.hex(),
        "base_bytes": manifest.base_size,
        "features": manifest.features,
        "max_classes": manifest.max_classes,
        "image_size": manifest.image_size,
        "quantize": manifest.quantize,
        "task_place": manifest.task_place,
        **about,
        "constants": entries,
    }


def _signature(signature: Signature) -> bytes:
    numbers = (*signature.image_shape, signature.room, signature.features, signature.places)
    return SIGNATURE.pack(signature.name.encode("ascii"), *numbers, bytes(44))


def _record(entry: Entry) -> bytes:
    return RECORD.pack(
        entry.kind,
        _CODES[entry.dtype],
        entry.offset,
        entry.nbytes,
        entry.size,
        entry.channels,
        entry.inner,
        entry.tensor,
        entry.graph,
        entry.scale_offset,
        entry.scale_count,
        0,
    )
