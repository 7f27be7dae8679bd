"""Writes the file of a task, `<task>.edge`; see `docs/edge-format.md`."""

import hashlib
import struct
from collections.abc import Iterable

from piggyback_tf.packs import codec
from piggyback_tf.packs.bits import MaskBits

from ...edge.piggyback_edge import (
    ANSWERS,
    COMPOSED,
    COMPOSITION,
    COMPRESSED,
    HAS_FACTORS,
    HAS_OFFSETS,
    HAS_RATIOS,
    HEAD_INSIDE,
    NEW_BYTES,
    OWN_NORM,
    RATIOS,
    TASK_HEADER,
    TASK_MAGIC,
    TERNARY,
    Composition,
    Manifest,
    Task,
)

_HEAD_KINDS = (7, 8)


def task_bytes(task: Task, manifest: Manifest, *, compress: bool = False) -> bytes:
    """Returns the content of a task's file; `Task.from_bytes` reads it.

    Args:
        task: The task; of its flags only `TERNARY` is looked at.
        manifest: The manifest of its base.
        compress: Whether to code the masks, each filter with one rate of zeros.
    """
    ternary = bool(task.flags & TERNARY)
    raw = b"".join(mask.tobytes() for _, mask in sorted(task.masks.items()))
    masks, rates = _coded(task, manifest, ternary) if compress else (raw, b"")
    corrections = _corrections(task)
    kinds = {manifest.entries[place].kind for place in (*task.ratios, *task.new_bytes, *task.compositions)}
    flags = (
        (TERNARY if ternary else 0)
        | (COMPRESSED if compress else 0)
        | (OWN_NORM if kinds - set(_HEAD_KINDS) else 0)
        | (HEAD_INSIDE if kinds & set(_HEAD_KINDS) else 0)
    )
    head = b"" if task.kernel is None else task.kernel.astype("<f4").tobytes() + task.bias.astype("<f4").tobytes()
    own = [task.problem, task.head_spec] if task.version > 1 else []
    text = _strings([task.name, task.augment, task.base_name, task.preprocessing, *own, *task.labels])
    height, width = task.signature.image_shape
    masked = bytes(place in task.masks for place in range(len(manifest.entries)))
    body, bounds = _lay_out([masked, masks, rates, head, corrections, text])
    header = TASK_HEADER.pack(
        TASK_MAGIC,
        task.version,
        flags,
        TASK_HEADER.size + len(body) + hashlib.sha256().digest_size,
        len(manifest.entries),
        len(task.labels),
        task.signature.features,
        height,
        manifest.base_sha256,
        manifest.base_hash,
        hashlib.sha256(raw).digest(),
        *bounds,
        width if task.version > 1 else 0,
        task.graph,
        ANSWERS.index(task.answer),
        bytes(12),
    )
    return header + body + hashlib.sha256(header + body).digest()


def _coded(task: Task, manifest: Manifest, ternary: bool) -> tuple[bytes, bytes]:
    """Returns words and rates of the masks, coded as in packs with the codec `static`."""
    masks = {str(place): MaskBits((manifest.entries[place].size,), mask) for place, mask in sorted(task.masks.items())}
    coded = codec.encode(masks, "ternary" if ternary else "binary", "static")
    return coded.stream.astype("<u4").tobytes(), coded.rates.tobytes()


def _corrections(task: Task) -> bytes:
    records = [(place, RATIOS, ratio.astype("<f4").tobytes()) for place, ratio in task.ratios.items()]
    records += [(place, NEW_BYTES, content) for place, content in task.new_bytes.items()]
    records += [(place, COMPOSED, _composition(made_of)) for place, made_of in task.compositions.items()]
    return b"".join(
        _padded(struct.pack("<IIQ", place, kind, len(content)) + content) for place, kind, content in sorted(records)
    )


def _composition(made_of: Composition) -> bytes:
    matrices = [each for each in (made_of.down, made_of.up) if each is not None]
    channels = [each for each in (made_of.ratios, made_of.offsets) if each is not None]
    has = HAS_RATIOS * (made_of.ratios is not None) + HAS_OFFSETS * (made_of.offsets is not None)
    sides = (0, 0, 0)
    if matrices:
        has, sides = has + HAS_FACTORS, (*made_of.up.shape, made_of.inner)
    header = COMPOSITION.pack(has, *sides, *made_of.factors, *made_of.added)
    return header + b"".join(each.astype("<f4").tobytes() for each in (made_of.scales, *channels, *matrices))


def _strings(strings: Iterable[str]) -> bytes:
    encoded = (string.encode() for string in strings)
    return b"".join(struct.pack("<I", len(data)) + data for data in encoded)


def _lay_out(sections: list[bytes]) -> tuple[bytes, list[int]]:
    """Returns the sections one behind another, and offset and length of each."""
    body, bounds = bytearray(), []
    for section in sections:
        bounds += [TASK_HEADER.size + len(body), len(section)]
        body += _padded(section)
    return bytes(body), bounds


def _padded(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // 8) * 8, b"\0")
