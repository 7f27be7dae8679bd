"""Files of tasks and manifests: what is written is read again, and everything else is refused."""

import hashlib
import struct

import numpy as np
import pytest

from export.edge.piggyback_edge import MANIFEST_HEADER, TASK_HEADER, EdgeError, Manifest, Task, _rate, decode_masks
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes
from piggyback_tf.packs import codec
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.zero_rates import RATES


def _sealed(data):
    """Returns a file with the right checksum over what is before it."""
    return bytes(data[:-32]) + hashlib.sha256(data[:-32]).digest()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ternary", [False, True])
def test_a_task_is_read_as_it_was_written(base, make_task, ternary, compress):
    task = make_task(ternary)
    found = Task.from_bytes(task_bytes(task, base.manifest, compress=compress), base.manifest)
    for name in ("name", "labels", "augment", "base_name", "preprocessing", "new_bytes"):
        assert getattr(found, name) == getattr(task, name)
    for name in ("masks", "ratios"):
        assert getattr(found, name).keys() == getattr(task, name).keys()
        assert all(np.array_equal(value, getattr(task, name)[key]) for key, value in getattr(found, name).items())
    assert np.array_equal(found.kernel, task.kernel)
    assert np.array_equal(found.bias, task.bias)


def test_rates_of_never_and_always(base, make_task):
    masks = {place: mask.copy() for place, mask in make_task(False).masks.items()}
    masks[0][:] = 0
    masks[2][:] = 255
    data = task_bytes(make_task(False, masks=masks), base.manifest, compress=True)
    found = Task.from_bytes(data, base.manifest)
    assert all(np.array_equal(found.masks[place], mask) for place, mask in masks.items())


def test_rates_are_those_of_packs():
    assert [_rate(code) for code in range(256)] == RATES.tolist()


def test_compressed_masks_take_their_entropy():
    rng, count = np.random.default_rng(0), 80_000
    dropped = rng.random(count) < 0.05
    mask = np.packbits(~dropped, bitorder="little")[None]
    coded = codec.encode({"0": MaskBits((count,), mask)}, "binary", "static")
    assert decode_masks(coded.stream.tobytes(), coded.rates.tobytes(), [count], 1) == mask.tobytes()
    assert coded.stream.nbytes < 0.3 * count / 8


def test_a_manifest_is_read_as_it_was_written(base):
    assert Manifest.from_bytes(manifest_bytes(base.manifest)) == base.manifest


def _file_of(kind, base, make_task):
    """Returns the content of a file, and what reads it."""
    if kind == "manifest":
        return manifest_bytes(base.manifest), Manifest.from_bytes
    data = task_bytes(make_task(), base.manifest, compress=kind == "compressed")
    return data, lambda content: Task.from_bytes(content, base.manifest)


@pytest.mark.parametrize("kind", ["manifest", "plain", "compressed"])
def test_any_changed_or_missing_byte_is_found(base, make_task, kind):
    data, read = _file_of(kind, base, make_task)
    read(data)
    for place in range(len(data)):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            with pytest.raises(EdgeError):
                read(bytes(changed))
        with pytest.raises(EdgeError):
            read(data[:place])
    with pytest.raises(EdgeError):
        read(data + b"\0")


@pytest.mark.parametrize("kind", ["manifest", "plain", "compressed"])
def test_forged_files_are_refused_or_read_whole(base, make_task, kind):
    """Bytes are changed and the checksum is made right: an answer may be another one, but never another error."""
    data, read = _file_of(kind, base, make_task)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(1500):
        changed = bytearray(data)
        for place in rng.integers(0, len(data) - 32, rng.integers(1, 4)):
            changed[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
        try:
            read(_sealed(changed))
        except EdgeError:
            refused += 1
    assert refused > 750


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, struct.pack("<I", 4), "version 4"),
        (12, struct.pack("<I", 16), "must be zero"),
        (16, struct.pack("<Q", 1 << 60), "cut off"),
        (28, struct.pack("<I", 0), "0 classes"),
        (40, b"x", "another base.tflite"),
        (104, b"x", "not those that were written"),
        (136, struct.pack("<Q", (1 << 64) - 8), "sections"),
        (144, struct.pack("<Q", 1 << 63), "sections"),
        (256, b"\2", "masked filters"),
        (259, b"\1", "no filter"),
    ],
)
def test_forged_fields_of_a_task(base, make_task, place, value, message):
    data = bytearray(task_bytes(make_task(), base.manifest))
    data[place : place + len(value)] = value
    with pytest.raises(EdgeError, match=message):
        Task.from_bytes(_sealed(data), base.manifest)


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 9), (4, 6), (8, 0), (8, 1 << 40), (16, 0), (24, 1 << 40), (32, 0), (36, 7), (44, 1), (48, 4), (60, 1)],
)
def test_forged_records_of_a_manifest(base, place, value):
    data = bytearray(manifest_bytes(base.manifest))
    # The second record: before it is another one that it could overlap.
    start = MANIFEST_HEADER.size + 64 + place
    data[start : start + 4] = struct.pack("<I", value & 0xFFFFFFFF)
    if value >> 32:
        data[start : start + 8] = struct.pack("<Q", value)
    with pytest.raises(EdgeError):
        Manifest.from_bytes(_sealed(data))


def test_sizes_of_headers():
    assert (MANIFEST_HEADER.size, TASK_HEADER.size) == (128, 256)
