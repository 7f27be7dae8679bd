"""Damaged pack files, and what must be true of opening any; shared by the tests and by `benchmarks/fuzz.py`."""

import dataclasses
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from piggyback_tf.packs import BaseSpec, PackError, TaskPack
from piggyback_tf.packs.base_fit import MisfitError, check_fits
from tests.packs.helpers import GOLDEN, affine_parts, base_of, make_pack, parts_of_all_roles, structured_pack

# What opening a wrong file may take: seconds, and times the memory that the good one takes.
MOST_SECONDS, MOST_MEMORY = 5.0, 4.0
# A good file takes so many bytes of memory for each of its own, where its settings hold a list of short numbers.
_MEMORY_PER_BYTE = 20
_KINDS, _CODECS = ("binary", "ternary"), ("best", "static", "bits")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A good file: its bytes, the digest of its content, and a base that it fits."""

    name: str
    data: bytes
    digest: str
    base: BaseSpec


@dataclasses.dataclass(frozen=True)
class Opening:
    """What came of opening a file: the pack or the error, processor seconds, and bytes of memory at the most."""

    pack: TaskPack | None
    error: BaseException | None
    seconds: float
    memory: int


def samples() -> list[Sample]:
    """Returns good files of all kinds, codecs and precisions, and of all versions of the format."""
    packs = {f"{kind} {codec}": (structured_pack(kind), codec) for kind in _KINDS for codec in _CODECS}
    packs["float16"] = (structured_pack().astype("float16"), "best")
    packs["small"] = (make_pack(), "best")
    answers = [None, *(0.1 * number for number in range(15))]
    packs["structure"] = (make_pack(base_structure="0f" * 32, base_answers=answers), "best")
    packs["parts"] = (make_pack(parts=parts_of_all_roles()), "best")
    packs["affine"] = (make_pack("ternary", parts=affine_parts()), "best")
    packs["parts alone"] = (make_pack("none", norm={}, parts=parts_of_all_roles()).astype("float16"), "best")
    packs["no masks"] = (make_pack("none"), "best")
    packs["no batch norm"] = (structured_pack(norm={}), "static")
    found = {name: (pack, pack.to_bytes(codec)) for name, (pack, codec) in packs.items()}
    for kind in (*_KINDS, "none"):
        found[f"version 1 {kind}"] = (make_pack(kind), (GOLDEN / f"{kind}.v1.task.safetensors").read_bytes())
    data = (GOLDEN / "ternary.v2.task.safetensors").read_bytes()
    found["version 2"] = (TaskPack.from_bytes(data), data)
    return [Sample(name, data, pack.content_digest(), base_of(pack)) for name, (pack, data) in found.items()]


def open_file(data: bytes, base: BaseSpec | None, traced: bool = False) -> Opening:
    """Opens a file, whatever happens; memory is 0 unless it is traced, which takes time."""
    pack = error = None
    if traced:
        tracemalloc.start()
    start = time.process_time()
    try:
        pack = TaskPack.from_bytes(data, base=base)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # A panic of a library written in Rust is no Exception.
        error = raised.with_traceback(None)
    seconds = time.process_time() - start
    memory = tracemalloc.get_traced_memory()[1] if traced else 0
    tracemalloc.stop()
    return Opening(pack, error, seconds, memory)


def honest_memory(sample: Sample, measured: int, data: bytes) -> int:
    """Returns the memory that a good file takes: as measured, and more for a longer file."""
    return measured + _MEMORY_PER_BYTE * max(0, len(data) - len(sample.data))


def find_fault(opening: Opening, digests: set[str] | None, base: BaseSpec | None, memory: float) -> str | None:
    """Returns what is wrong about how a file was opened or refused, None if nothing is.

    Args:
        opening: What came of it.
        digests: The contents that it may have. None for a forgery: if it opens, it has to be a sound pack.
        base: The base that was given.
        memory: The bytes of memory that opening may take.
    """
    error, pack = opening.error, opening.pack
    if opening.seconds > MOST_SECONDS:
        return f"takes {opening.seconds:.1f} s"
    if opening.memory > memory:
        return f"takes {opening.memory:,} bytes of memory, {opening.memory / memory:.2f} times what it may"
    if error is not None:
        return _fault_of_error(error)
    if digests is not None:
        return None if pack.content_digest() in digests else "opens to other content"
    again = TaskPack.from_bytes(pack.to_bytes())
    if again.content_digest() != pack.content_digest():
        return "opens to a pack that is another one when it is saved"
    if base is not None:
        check_fits(pack.claims, base)
    return None


def _fault_of_error(error: BaseException) -> str | None:
    if not isinstance(error, PackError):
        return f"raises {type(error).__name__}: {str(error)[:200]}"
    text = str(error)
    if not isinstance(error, MisfitError) and not text.startswith("The file 'bytes' "):
        return f"does not name the file: {text[:200]}"
    if not text.endswith(".") or len(text) > 700 or not text.isprintable():
        return f"gives no clear sentence: {text[:200]!r}"
    return None


# How bytes are damaged: of the data, at a place, with some value, and with the bytes of another file.
EDITS: dict[str, Callable[[bytearray, int, int, bytes], Any]] = {}


def _edit(function: Callable) -> Callable:
    EDITS[function.__name__.strip("_")] = function
    return function


@_edit
def _flip(data: bytearray, place: int, value: int, other: bytes) -> None:
    data[place] ^= 1 << value % 8


@_edit
def _change(data: bytearray, place: int, value: int, other: bytes) -> None:
    data[place] = value % 256


@_edit
def _insert(data: bytearray, place: int, value: int, other: bytes) -> None:
    data[place:place] = value.to_bytes(4, "little") * (1 + value % 20)


@_edit
def _delete(data: bytearray, place: int, value: int, other: bytes) -> None:
    del data[place : place + 1 + value % 64]


@_edit
def _swap(data: bytearray, place: int, value: int, other: bytes) -> None:
    length = 1 + value % 16
    second = value % len(data)
    data[place : place + length], data[second : second + length] = (
        data[second : second + length],
        data[place : place + length],
    )


@_edit
def _truncate(data: bytearray, place: int, value: int, other: bytes) -> None:
    del data[place:]


@_edit
def _splice(data: bytearray, place: int, value: int, other: bytes) -> None:
    # At the same place, as if a download went on with another file, or anywhere.
    data[place:] = other[place if value % 2 else value % len(other) :]


def damage(data: bytes, edits: list[tuple[str, int, int]], other: bytes) -> bytes:
    """Returns damaged bytes.

    Args:
        data: The bytes of a good file.
        edits: Names in `EDITS`, places and values, which are done one after another.
        other: The bytes of another file.
    """
    result = bytearray(data)
    for name, place, value in edits:
        if result:
            EDITS[name](result, place % len(result), value, other)
    return bytes(result)
