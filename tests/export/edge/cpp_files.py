"""Bases, manifests and tasks of every kind for the C++ patcher: random ones, which no exporter has to make first."""

import dataclasses
import hashlib

import numpy as np

from export.edge.piggyback_edge import (
    COMPRESSED,
    DIGEST,
    DTYPES,
    QUANTIZATIONS,
    TERNARY,
    Base,
    Composition,
    Entry,
    Manifest,
    Model,
    Task,
)
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes

FEATURES, MAX_CLASSES = 6, 5
# Finite float16 numbers, all of them: 63488 in 496 channels.
ALL_HALVES = np.arange(65536, dtype=np.uint16)[(np.arange(65536) & 0x7C00) != 0x7C00].view(np.float16)
# Shapes of filters: elements, channels and inner, in ways that conv, dense and depthwise kernels have them.
_SHAPES = ((27 * 4, 4, 27), (9 * 5, 5, 1), (77, 7, 11), (1, 1, 1), (24 * 16, 24, 16))
_ELEMENT = {"none": 1, "float16": 2, "dynamic": 3, "int8": 3}
_RATIOS = np.array([0.0, -0.0, 1.0, -1.0, 0.37, -2.5, 1e-7, 3e4, 1e-38, -3e38], np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Device:
    """What lies on a device: a base and its manifest."""

    base: bytes
    manifest: Manifest

    def content(self) -> bytes:
        """The content of manifest.bin."""
        return manifest_bytes(self.manifest)

    def installed(self, data: bytes) -> bytes:
        """What the Python patcher makes of the base and the content of a task's file."""
        model = Model(Base(self.base, self.manifest))
        model.install(Task.from_bytes(data, self.manifest))
        return bytes(model.data)


def make_device(quantize="none", max_classes=0, seed=0, filters=_SHAPES, version=2, room=64):
    """Returns a base of random bytes in which the filters are numbers, and its manifest.

    The constants begin behind `room` bytes; of fewer than 128, scales of filters lie in constants.
    """
    rng = np.random.default_rng(seed)
    shapes = [(1, *shape) for shape in filters]
    if quantize == "float16":
        shapes.append((1, ALL_HALVES.size, 496, 128))
    shapes += [(2, 7, 1, 1), (3, 7, 1, 1), (4, 24, 1, 1), (5, 4, 1, 1), (6, 3, 1, 1)]
    if max_classes:
        shapes += [(7, max_classes * FEATURES, max_classes, FEATURES), (8, max_classes, 1, 1)]
    data, entries = bytearray(rng.bytes(room)), []
    data[4:8] = b"TFL3"
    for number, (kind, size, channels, inner) in enumerate(shapes):
        element = {5: 1, 6: 5}.get(kind, _ELEMENT[quantize])
        if quantize == "dynamic" and (kind != 1 or number % 2):
            element = {6: 5}.get(kind, 1)
        dtype = DTYPES[element]
        scales = (8, channels if number % 3 else 1) if (kind, element) == (1, 3) else (0, 0)
        entries.append(Entry(kind, dtype, len(data), size, channels, inner, number, *scales))
        data += _numbers(size, dtype, rng).tobytes() + rng.bytes(int(rng.integers(0, 9)))
    # Between the constants of a real base, too, there is other metadata.
    place = len(data) + 3 if version == 2 else 0
    base = bytes(data) + b"abc" + bytes(DIGEST) + rng.bytes(9)
    digests = hashlib.sha256(base).digest(), rng.bytes(32)
    return Device(base, Manifest(len(base), *digests, FEATURES, max_classes, 32, quantize, tuple(entries), place))


def make_task(device, ternary=False, norm=False, compress=False, classes=3, seed=0, masked=0.8, composed=False):
    """Returns the content of a task's file with random masks, ratios and new bytes, and perhaps composed filters."""
    rng = np.random.default_rng(seed)
    masks, ratios, new_bytes, compositions = {}, {}, {}, {}
    for place, entry in enumerate(device.manifest.entries):
        if entry.kind == 1:
            if rng.random() < masked:
                masks[place] = _mask(entry.size, ternary, rng)
            if composed and (len(compositions) < 3 or rng.random() < 0.5):
                compositions[place] = _composition(entry, rng, len(compositions))
            elif norm and rng.random() < 0.7:
                pool = np.array([1, -1], np.float32) if entry.dtype.kind == "i" else _RATIOS
                ratios[place] = rng.choice(pool, entry.channels)
        elif entry.kind < 7 and norm and rng.random() < 0.8:
            count = entry.size if rng.random() < 0.7 else max(1, entry.size // 2)
            new_bytes[place] = rng.bytes(count * entry.dtype.itemsize)
        elif entry.kind >= 7:
            count = classes * (FEATURES if entry.kind == 7 else 1)
            new_bytes[place] = rng.bytes(count * entry.dtype.itemsize)
    inside = bool(device.manifest.max_classes)
    kernel = None if inside else rng.standard_normal((FEATURES, classes)).astype(np.float32)
    bias = None if inside else rng.standard_normal(classes).astype(np.float32)
    labels = (*("cat", "Gänsblüme", "\x1b[2Jロボ\U0001f916")[:classes], *map(str, range(classes - 3)))
    flags = (TERNARY if ternary else 0) | (COMPRESSED if compress else 0)
    texts = ("pets", labels, "resize(32)", "net", "tf: x / 127.5 - 1")
    task = Task(
        *texts, flags, masks, ratios, new_bytes, kernel, bias, 0, bytes(DIGEST), device.manifest,
        compositions=compositions,
    )  # fmt: skip
    return task_bytes(task, device.manifest, compress=compress)


def _composition(entry, rng, number):
    """Returns what a filter is made of: the first with all that there can be, others with some of it."""

    def some(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    down = up = None
    inner = 1
    if number == 0 or rng.random() < 0.6:
        # Columns of a product are the channels, or the elements of one.
        columns, inner = (entry.channels, entry.inner) if number % 2 == 0 else (entry.inner, 1)
        rank = int(rng.integers(1, 4))
        down, up = some(entry.size // columns, rank), some(rank, columns)
    return Composition(
        factors=some(3),
        added=some(3) if number == 0 or rng.random() < 0.6 else np.zeros(3, np.float32),
        # Small ones, with which numbers are cut off.
        scales=np.abs(some(entry.scale_count)) * np.float32(0.01),
        ratios=some(entry.channels) if number == 0 or rng.random() < 0.6 else None,
        offsets=some(entry.channels) if number == 0 or rng.random() < 0.6 else None,
        down=down,
        up=up,
        inner=inner,
    )


def _numbers(size, dtype, rng):
    if dtype.kind == "i":
        limit = np.iinfo(dtype).max
        return rng.integers(-limit, limit, size, dtype, endpoint=True)
    if size == ALL_HALVES.size:
        return ALL_HALVES
    # Of all sizes, subnormal numbers and zeros of both signs among them.
    numbers = rng.standard_normal(size) * 10.0 ** rng.integers(-45, 5, size)
    numbers[rng.random(size) < 0.1] = -0.0
    return numbers.clip(-6e4, 6e4).astype(dtype)


def _mask(size, ternary, rng):
    """Returns a mask with some share of zeros, none and all of them too, uint8 `[planes, ceil(n / 8)]`."""
    kept = rng.random(size) >= rng.choice([0.0, 0.03, 0.5, 0.97, 1.0])
    negated = kept & (rng.random(size) < rng.choice([0.0, 0.3, 1.0]))
    planes = [kept, negated] if ternary else [kept]
    return np.stack([np.packbits(plane, bitorder="little") for plane in planes])


assert set(_ELEMENT) == set(QUANTIZATIONS)
