"""Installs tasks on a base.tflite, on a device: one file that needs only Python 3.9 and numpy 1.19, or newer.

    python piggyback_edge.py inspect base.tflite flowers.edge
    python piggyback_edge.py verify base.tflite flowers.edge
    python piggyback_edge.py install base.tflite flowers.edge current.tflite
    python piggyback_edge.py installed base.tflite current.tflite
    python piggyback_edge.py remove base.tflite current.tflite
    python piggyback_edge.py predict base.tflite flowers.edge photo.jpg

`manifest.bin` is read from the folder of `base.tflite`. `install` writes a copy of the base with the task installed,
completely or not at all. It never writes to the base. `predict` needs ai_edge_litert or tflite_runtime. It accepts
prepared images as .npy files. With Pillow, and `piggyback_images.py` beside this file, it also accepts image files, and
decodes and prepares them as training did. For classification it prints the most probable classes. For segmentation it
prints the share of each class, and with `--output_dir` it writes label maps. For detection it prints the boxes with a
score of 0.3 or more. From Python:

    from ai_edge_litert.interpreter import Interpreter
    from piggyback_edge import Base, Model, Task, prepare
    from piggyback_images import read_image

    base = Base.load("base.tflite")
    task = Task.load("flowers.edge", base.manifest)
    model = Model(base)                 # a copy of the base in memory
    model.install(task)
    content = bytes(model.data)
    interpreter = Interpreter(model_content=content)
    run = interpreter.get_signature_runner(task.signature.name)
    image = prepare(read_image("photo.jpg"), task.augment)[None].astype("float32")
    (output,) = run(images=image).values()
    probabilities = task.probabilities(output, content)     # or, for segmentation, task.label_maps(output, content)
    # For detection: outputs = run(images=image); task.boxes(outputs["scores"], outputs["sides"], content)

The files are described in docs/edge-format.md of the project piggyback_tf.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import importlib.util
import io
import mmap
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

TASK_VERSIONS = (1, 2, 3)
MANIFEST_VERSIONS = (1, 2, 3)
FILTER = 1
KINDS = {1: "filter", 2: "bias", 3: "factor", 4: "offset", 5: "scales", 6: "zeros", 7: "head kernel", 8: "head bias"}
DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<f4"),
    2: np.dtype("<f2"),
    3: np.dtype("i1"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
}
QUANTIZATIONS = ("none", "float16", "dynamic", "int8")
# What is made of the logits of a task's classes: probabilities, the number of the largest, or a probability of each.
# Boxes are made of scores and sides.
ANSWERS = ("softmax", "argmax", "sigmoid", "boxes")
# What an answer is called, and by which function of `Task` it is made.
_CALLS = {"softmax": "probabilities", "argmax": "label_maps", "sigmoid": "probabilities", "boxes": "boxes"}
# Of boxes: so many of an image at most, with such a score at least; of two of a class that overlap more, the surer one.
MOST_BOXES, LEAST_SCORE, OVERLAP = 100, np.float32(0.05), np.float32(0.6)
# Networks see images that are padded to multiples of it, on the right and below.
PADDED_TO = 32
# The score of boxes that `predict` prints.
_BELIEVED = 0.3
TERNARY, COMPRESSED, OWN_NORM, HEAD_INSIDE = 1, 2, 4, 8
MANIFEST_MAGIC, TASK_MAGIC = b"PBEDGEMF", b"PBEDGETK"
MANIFEST_HEADER = struct.Struct("<8sIIQQ32s32sIIIIQI4s")
RECORD = struct.Struct("<IIQQQIIIIQII")
SIGNATURE = struct.Struct("<64sIIIII44s")
TASK_HEADER = struct.Struct("<8sIIQIIII32s32s32s12QIII12s")
# Of the graph with a dense head, which has been there in all versions.
FIRST_SIGNATURE = "serving_default"
COMPOSITION = struct.Struct("<4I6f")
RATIOS, NEW_BYTES, COMPOSED = 1, 2, 3
# What a composition has beside its numbers.
HAS_RATIOS, HAS_OFFSETS, HAS_FACTORS = 1, 2, 4
DIGEST = 32
_MAX_FILE, _MAX_BASE, _MAX_COUNT, _MAX_TEXT = 1 << 30, (1 << 31) - 1, 1 << 20, 65535
_MAX_SIGNATURES, _MAX_SIDE, _MAX_OUTPUT, _MAX_LABELS = 256, 1 << 15, 1 << 28, 256
_RATIO_DTYPE = np.dtype("<f4")
_WINDOWS = os.name == "nt"
# What `weight_cache` puts behind a model's name.
_CACHE_NAME = re.compile(r"[0-9a-f]{32}\.xnnpack")


class EdgeError(Exception):
    """A file is damaged or does not fit; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A constant that tasks change; see docs/edge-format.md.

    Attributes:
        kind: One of `KINDS`.
        dtype: The type of its elements.
        offset: Its first byte in base.tflite.
        size: How many elements it has.
        channels: How many channels it has.
        inner: Element i belongs to channel `i // inner % channels`.
        tensor: The number of its tensor.
        scale_offset: Where the scales of a quantised filter are in base.tflite; 0 if it has none.
        scale_count: How many there are.
        graph: The number of the first graph that the tensor is in.
    """

    kind: int
    dtype: np.dtype
    offset: int
    size: int
    channels: int
    inner: int
    tensor: int
    scale_offset: int = 0
    scale_count: int = 0
    graph: int = 0

    @property
    def nbytes(self) -> int:
        """Its bytes in base.tflite."""
        return self.size * self.dtype.itemsize

    @property
    def mask_bytes(self) -> int:
        """Bytes of a plane of its mask."""
        return -(-self.size // 8)


@dataclasses.dataclass(frozen=True)
class Signature:
    """A graph of a base.tflite, which answers tasks with one kind of head on images of one size.

    Attributes:
        name: Its name, for `get_signature_runner`; its number among all is that of its subgraph.
        image_shape: `(height, width)` of the images.
        room: For how many classes its head is; 0 if it ends in features, and the head is in the files of tasks.
        features: How many features a dense head takes; 0 of other heads.
        places: At how many places of an image it gives logits; 1 if it is for an image as a whole.
    """

    name: str
    image_shape: tuple[int, int]
    room: int
    features: int
    places: int = 1


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Where in a base.tflite the constants are that tasks change.

    Attributes:
        base_size: Bytes of base.tflite.
        base_sha256: Its SHA-256.
        base_hash: The hash of the base that packs name.
        features: How many features the base gives; 0 in version 3, whose signatures say it.
        max_classes: 0, or how many logits the base ends in; 0 in version 3.
        image_size: The side of the images; 0 in version 3.
        quantize: One of `QUANTIZATIONS`.
        entries: The constants.
        task_place: Where a model holds the digest of the task on it, 32 bytes, zeros in the base; 0 in bases of
            version 1, whose models do not say what is on them.
        graphs: The signatures of version 3; none in older ones. `signatures` are those of all versions.
    """

    base_size: int
    base_sha256: bytes
    base_hash: bytes
    features: int
    max_classes: int
    image_size: int
    quantize: str
    entries: tuple[Entry, ...]
    task_place: int = 0
    graphs: tuple[Signature, ...] = ()

    @property
    def version(self) -> int:
        """The version of its file: 1 had no place for the digest of a task, and 2 is of one graph with a dense head."""
        return 3 if self.graphs else 2 if self.task_place else 1

    @property
    def signatures(self) -> tuple[Signature, ...]:
        """The graphs of the base."""
        size = self.image_size
        return self.graphs or (Signature(FIRST_SIGNATURE, (size, size), self.max_classes, self.features),)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Manifest:
        """Reads manifest.bin.

        Raises:
            EdgeError: If it is damaged.
            OSError: If it cannot be read.
        """
        return cls.from_bytes(_read(path, _MAX_FILE), os.fspath(path))

    @classmethod
    def from_bytes(cls, data: bytes, name: str = "manifest") -> Manifest:
        """Does what `load` does with the file's content; `name` stands for the file in errors."""
        with _errors_of(name):
            _check_file(data, MANIFEST_MAGIC, MANIFEST_HEADER.size, 16, MANIFEST_VERSIONS)
            header = MANIFEST_HEADER.unpack_from(data)
            _, version, count, _, base_size, sha256, base_hash, *numbers, place, more, zero = header
            features, max_classes, image_size, quantize = numbers
            _check(1 <= count <= 65536, f"it has {count} entries")
            begin = MANIFEST_HEADER.size + count * RECORD.size
            _check(len(data) == begin + more * SIGNATURE.size + DIGEST, "its size is not that of its entries")
            _check(0 < base_size <= _MAX_BASE, f"its base has {base_size} bytes")
            if version == 3:
                _check(1 <= more <= _MAX_SIGNATURES, f"it has {more} signatures")
                _check(features == max_classes == image_size == 0, "bytes that must be zero are not")
            else:
                good = 1 <= features <= _MAX_COUNT and max_classes <= _MAX_COUNT
                _check(good, "its numbers of features are impossible")
                _check(more == 0, "bytes that must be zero are not")
            _check(quantize < len(QUANTIZATIONS), f"it has the unknown quantisation {quantize}")
            _check(not any(zero), "bytes that must be zero are not")
            good = place == 0 if version == 1 else 1 <= place <= base_size - DIGEST
            _check(good, "the place of its task's digest is impossible")
            entries = []
            end = 0
            for fields in RECORD.iter_unpack(data[MANIFEST_HEADER.size : begin]):
                entries.append(_entry(len(entries), fields, end, base_size, max(more, 1)))
                end = entries[-1].offset + entries[-1].nbytes
                apart = place == 0 or entries[-1].offset >= place + DIGEST or end <= place
                _check(apart, f"entry {len(entries) - 1} overlaps the place of its task's digest")
            graphs = tuple(map(_signature, SIGNATURE.iter_unpack(data[begin:-DIGEST])))
            _check(len({graph.name for graph in graphs}) == len(graphs), "two of its signatures have one name")
            return cls(
                base_size, sha256, base_hash, features, max_classes, image_size, QUANTIZATIONS[quantize],
                tuple(entries), place, graphs,
            )  # fmt: skip

    @functools.cached_property
    def filters(self) -> tuple[int, ...]:
        """The places of the filters among the entries."""
        return tuple(place for place, entry in enumerate(self.entries) if entry.kind == FILTER)

    def installed(self, model: bytes | bytearray | mmap.mmap) -> bytes | None:
        """Returns the digest of the task on a model of this base, or None if there is no task on it.

        Raises:
            EdgeError: If it is no model of this base, or the base is of version 1, whose models do not say it.
        """
        if not self.task_place:
            raise EdgeError("The base is of version 1, whose models do not say which task is on them; export it anew.")
        if len(model) != self.base_size:
            raise EdgeError(f"The model has {len(model)} bytes, and its base {self.base_size}: it is not of this base.")
        digest = bytes(model[self.task_place : self.task_place + DIGEST])
        return digest if any(digest) else None


def _signature(fields: tuple[Any, ...]) -> Signature:
    """Returns a signature of a manifest."""
    name, height, width, room, features, places, zero = fields
    text = name.rstrip(b"\0")
    good = text and len(text) < len(name) and all(0x21 <= byte <= 0x7E for byte in text) and not any(zero)
    _check(bool(good), "a signature in it has no good name, or bytes that must be zero are not")
    _check(1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE, "the images of a signature are impossible")
    _check(room <= _MAX_COUNT and features <= _MAX_COUNT, "the numbers of features of a signature are impossible")
    # What ends in features has a dense head elsewhere.
    good = 1 <= places <= _MAX_OUTPUT and places * max(room, 1) <= _MAX_OUTPUT
    _check(good and (room > 0 or (features > 0 and places == 1)), "a signature has no possible output")
    return Signature(text.decode("ascii"), (height, width), room, features, places)


def _entry(place: int, fields: tuple[int, ...], begin: int, base_size: int, graphs: int) -> Entry:
    """Returns a record of a manifest; what it describes begins at `begin` or behind it."""
    kind, element, offset, nbytes, size, channels, inner, tensor, graph, scale_offset, scale_count, zero = fields
    what = f"entry {place}"
    _check(kind in KINDS and element in DTYPES, f"{what} is of an unknown kind or type")
    dtype = DTYPES[element]
    _check(1 <= size <= _MAX_BASE and nbytes == size * dtype.itemsize, f"the size of {what} is impossible")
    _check(begin <= offset and offset + nbytes <= base_size, f"{what} overlaps another or ends behind the base")
    _check(channels >= 1 and inner >= 1 and size % (channels * inner) == 0, f"the channels of {what} are impossible")
    _check(kind != FILTER or element in (1, 2, 3), f"{what} is a filter of a type that filters do not have")
    _check(graph < graphs and zero == 0, f"bytes of {what} that must be zero are not, or it is in no graph")
    scaled = kind == FILTER and element == 3
    _check(scale_count in ((1, channels) if scaled else (0,)), f"{what} has {scale_count} scales")
    good = 1 <= scale_offset <= base_size - 4 * scale_count if scaled else scale_offset == 0
    _check(good, f"the scales of {what} are outside of the base")
    return Entry(kind, dtype, offset, size, channels, inner, tensor, scale_offset, scale_count, graph)


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """What a task makes of a filter that it changes otherwise than by dropping, negating and scaling; see
    docs/edge-format.md.

    Attributes:
        factors: By what a weight is multiplied where the mask is 0, 1 and -1, float32 `[3]`.
        added: What is added then, float32 `[3]`.
        scales: The scales of the new filter, float32 `[scale_count]`; none if it is not quantised.
        ratios: By what the products of each channel are multiplied, float32 `[channels]`; None if by nothing.
        offsets: The same of what is added; None likewise.
        down: A matrix A, float32 `[rows, rank]`; None if no product of matrices is added.
        up: A matrix B, float32 `[rank, columns]`; None likewise.
        inner: How many elements of a column of A B lie side by side.
    """

    factors: np.ndarray
    added: np.ndarray
    scales: np.ndarray
    ratios: np.ndarray | None = None
    offsets: np.ndarray | None = None
    down: np.ndarray | None = None
    up: np.ndarray | None = None
    inner: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a task changes.

    Attributes:
        name: The task's name.
        labels: Its classes.
        augment: The augmentation string that prepares an image.
        base_name: The base's name.
        preprocessing: What the base does to an image, for the record.
        flags: Of the file.
        masks: For the place of a masked filter its mask, uint8 `[planes, ceil(n / 8)]`.
        ratios: For the place of a filter the ratios of its channels, float32.
        new_bytes: For the place of another constant what it begins with.
        kernel: The head's kernel, float32 `[F, C]`; None if the head is a part of the graph.
        bias: The head's bias, float32 `[C]`; None likewise.
        nbytes: The size of its file.
        digest: What models say that it is on; see docs/edge-format.md. Zeros if it was never a file.
        manifest: The manifest of its base.
        graph: The number of its signature.
        answer: What is made of logits, one of `ANSWERS`.
        problem: What it finds, as its pack says: `"class"`, `"map"` for the class of each pixel, or `"boxes"`.
        head_spec: Its head as its pack says, as JSON; empty in version 1, where all heads are dense.
        compositions: For the place of a filter that is made in another way what it is made of.
    """

    name: str
    labels: tuple[str, ...]
    augment: str
    base_name: str
    preprocessing: str
    flags: int
    masks: dict[int, np.ndarray]
    ratios: dict[int, np.ndarray]
    new_bytes: dict[int, bytes]
    kernel: np.ndarray | None
    bias: np.ndarray | None
    nbytes: int
    digest: bytes
    manifest: Manifest
    graph: int = 0
    answer: str = "softmax"
    problem: str = "class"
    head_spec: str = ""
    compositions: dict[int, Composition] = dataclasses.field(default_factory=dict)

    @property
    def version(self) -> int:
        """The version of its file: 1 is of probabilities by a dense head, on bases without other heads, and before 3
        filters are dropped, negated and scaled alone."""
        if self.compositions:
            return 3
        return 1 if not self.manifest.graphs and (self.answer, self.problem) == ("softmax", "class") else 2

    @property
    def signature(self) -> Signature:
        """The graph that answers it."""
        return self.manifest.signatures[self.graph]

    @classmethod
    def load(cls, path: str | os.PathLike, manifest: Manifest) -> Task:
        """Reads a task's file for a base.

        Raises:
            EdgeError: If it is damaged, or for another base.
            OSError: If it cannot be read.
        """
        return cls.from_bytes(_read(path, _MAX_FILE), manifest, os.fspath(path))

    @classmethod
    def from_bytes(cls, data: bytes, manifest: Manifest, name: str = "task") -> Task:
        """Does what `load` does with the file's content; `name` stands for the file in errors."""
        with _errors_of(name):
            _check_file(data, TASK_MAGIC, TASK_HEADER.size, 16, TASK_VERSIONS)
            _, version, flags, _, count, classes, features, size, *digests = TASK_HEADER.unpack_from(data)[:11]
            *bounds, width, graph, answer, zero = TASK_HEADER.unpack_from(data)[11:]
            if digests[:2] != [manifest.base_sha256, manifest.base_hash]:
                raise EdgeError("it is for another base.tflite")
            _check(flags < 16 and not any(zero), "bytes that must be zero are not")
            _check(count == len(manifest.entries), f"it is for {count} entries")
            _check(version > 1 or not (width or graph or answer), "bytes that must be zero are not")
            _check(version > 1 or not manifest.graphs, "it is of version 1, and the base has several kinds of tasks")
            _check(graph < len(manifest.signatures), "it is for a signature that the base does not have")
            signature = manifest.signatures[graph]
            shape = (size, width if version > 1 else size)
            good = features == signature.features and shape == signature.image_shape
            _check(good, "it is for other images or features")
            good = answer < len(ANSWERS) and (ANSWERS[answer] in ("argmax", "boxes") or signature.places == 1)
            _check(good, "it answers in a way that its signature does not")
            most = signature.room or _MAX_COUNT
            most = min(most, _MAX_LABELS) if ANSWERS[answer] == "argmax" else most
            _check(1 <= classes <= most, f"it has {classes} classes, and the base has room for {most}")
            inside = bool(signature.room)
            _check(bool(flags & HEAD_INSIDE) == inside, "its head is in another place than the base's")
            masked, masks, rates, head, corrections, text = _sections(data, bounds)
            places = _masked_places(masked, manifest)
            planes = 2 if flags & TERNARY else 1
            counts = [manifest.entries[place].size for place in places]
            if flags & COMPRESSED:
                masks = decode_masks(masks, rates, counts, planes)
            _check(flags & COMPRESSED or not rates, "it has rates and is not compressed")
            _check(hashlib.sha256(masks).digest() == digests[2], "its masks are not those that were written")
            ratios, new_bytes, compositions = _corrections(corrections, manifest, flags)
            _check((version == 3) == bool(compositions), "it is of version 3 if filters are composed, and then alone")
            kernel, bias = (None, None) if inside else _head(head, features, classes)
            _check(not (inside and head), "it has two heads")
            own = 2 if version > 1 else 0
            name, augment, base_name, preprocessing, *labels = _strings(text, 4 + own + classes)
            problem, head_spec = labels[:own] or ("class", "")
            parts = [hashlib.sha256(part).digest() for part in (masked, head, corrections, text)]
            digest = hashlib.sha256(b"".join([*digests, *parts])).digest()
            found = dict(zip(places, _split_masks(masks, counts, planes)))
            return cls(
                name, tuple(labels[own:]), augment, base_name, preprocessing, flags, found, ratios, new_bytes, kernel,
                bias, len(data), digest, manifest, graph, ANSWERS[answer], problem, head_spec,
                compositions,
            )  # fmt: skip

    def probabilities(self, output: np.ndarray, model: bytes | bytearray | mmap.mmap) -> np.ndarray:
        """Returns probabilities, float32 `[B, C]`.

        NaN stays NaN; but of what is no image a model may return other numbers: `check_pixels` comes before it.

        Args:
            output: What the model returned, float32 `[B, ...]`.
            model: The bytes that its interpreter was made of, or its file, mapped. Of a base of version 1 they say
                nothing.

        Raises:
            EdgeError: If another task or none is on the model, whose answers this task's head would read wrongly; or if
                the task answers otherwise.
        """
        logits = self._logits(output, model, "probabilities")
        if self.answer == "sigmoid":
            # Without overflow, on both sides.
            powers = np.exp(-np.abs(logits))
            return np.where(logits < 0, powers, 1) / (1 + powers)
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def label_maps(self, output: np.ndarray, model: bytes | bytearray | mmap.mmap) -> np.ndarray:
        """Returns label maps, uint8 `[B, H, W]`: the most probable class of each pixel, of equal ones the first.

        `at_own_size` gives them the size of the image before it was prepared.

        Args:
            output: What the model returned, float32 `[B, H, W, K]`.
            model: As of `probabilities`.

        Raises:
            EdgeError: As of `probabilities`, and if numbers are not finite.
        """
        logits = self._logits(output, model, "label_maps")
        _check(bool(np.isfinite(logits).all()), "The model returned numbers that are not finite.")
        return logits.argmax(axis=-1).astype(np.uint8)

    def boxes(self, scores: np.ndarray, sides: np.ndarray, model: bytes | bytearray | mmap.mmap) -> np.ndarray:
        """Returns boxes, float32 `[B, 100, 6]`, as `chosen_boxes` chooses them.

        `boxes_at_own_size` makes of them boxes of the image before it was prepared.

        Args:
            scores: What the model returned under this name, float32 `[B, h, w, K]`.
            sides: The same, float32 `[B, h, w, 4]`.
            model: As of `probabilities`.

        Raises:
            EdgeError: As of `probabilities`, and if numbers are not finite, or shapes do not go together.
        """
        self._check_asked(model, "boxes")
        places, found = self.signature.places, (scores.shape[:1], scores.shape[1:3])
        good = scores.ndim == sides.ndim == 4 and (sides.shape[:1], sides.shape[1:3]) == found and sides.shape[3] == 4
        good = good and found[1][0] * found[1][1] == places and scores.shape[3] >= len(self.labels)
        _check(good, f"Scores and sides are of {list(scores.shape)} and {list(sides.shape)}, which is not the model's.")
        _check(
            bool(np.isfinite(scores).all() and np.isfinite(sides).all()),
            "The model returned numbers that are not finite.",
        )
        return chosen_boxes(scores[..., : len(self.labels)], sides, self.signature.image_shape)

    def _check_asked(self, model: bytes | bytearray | mmap.mmap, asked: str) -> None:
        """Checks that the task makes such an answer, and is on a model; see `probabilities`."""
        if (call := _CALLS[self.answer]) != asked:
            name = _printable(self.name)
            raise EdgeError(f"Task {name!r} is of the problem {_printable(self.problem)!r}: ask for its {call}.")
        if self.manifest.task_place and self.manifest.installed(model) != self.digest:
            raise EdgeError(f"Not task {_printable(self.name)!r} is on the model, but another one or none: install it.")

    def _logits(self, output: np.ndarray, model: bytes | bytearray | mmap.mmap, asked: str) -> np.ndarray:
        """Returns the logits of the task's classes, float32 `[B, ..., C]`; see `probabilities`."""
        self._check_asked(model, asked)
        if self.kernel is None:
            return output[..., : len(self.labels)]
        return output.astype(np.float32) @ self.kernel + self.bias


def boxes_of_points(
    scores: np.ndarray, sides: np.ndarray, image_shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the box of each point of a feature map, cut to the image, and its scores; see docs/edge-format.md.

    Args:
        scores: How sure the model is of each class, float32 `[B, h, w, C]`.
        sides: How far up, left, down and right the sides of the box are from the point, in pixels, float32
            `[B, h, w, 4]`.
        image_shape: `(height, width)` of the images.

    Returns:
        ymin, xmin, ymax and xmax, float32 `[B, h w, 4]`, and float32 `[B, h w, C]`, 0 where nothing is left of a box.
    """
    count, rows, columns = sides.shape[:3]
    centres = []
    for places, side in zip((rows, columns), image_shape):
        step = -(-side // PADDED_TO) * PADDED_TO / places
        centres.append(((np.arange(places) + 0.5) * step).astype(np.float32))
    points = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    far = sides.reshape(count, -1, 4).astype(np.float32)
    boxes = np.concatenate([points - far[..., :2], points + far[..., 2:]], axis=-1)
    boxes = np.clip(boxes, np.float32(0), np.array([*image_shape] * 2, np.float32))
    # Points are also where the network sees an image padded.
    there = ((boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]))[..., None]
    return boxes, np.where(there, scores.reshape(count, rows * columns, -1), np.float32(0)).astype(np.float32)


def chosen_boxes(scores: np.ndarray, sides: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """Returns the boxes that are left where the surer of two of a class that overlap is kept; see docs/edge-format.md.

    Args:
        scores: As of `boxes_of_points`.
        sides: As of `boxes_of_points`.
        image_shape: As of `boxes_of_points`.

    Returns:
        float32 `[B, 100, 6]`: ymin, xmin, ymax and xmax in pixels of the prepared image, the number of the class, -1
        where there is no box, and the score; the surest first, of equally sure ones the first class, and the first
        point.
    """
    boxes, scores = boxes_of_points(scores, sides, image_shape)
    found = np.zeros((len(boxes), MOST_BOXES, 6), np.float32)
    found[..., 4] = -1
    for image, (own, chances) in enumerate(zip(boxes, scores)):
        rows = []
        for number in range(chances.shape[1]):
            kept = _kept(own, chances[:, number])
            rows.append(np.column_stack([own[kept], np.full(len(kept), number, np.float32), chances[kept, number]]))
        together = np.concatenate(rows)
        order = np.argsort(-together[:, 5], kind="stable")[:MOST_BOXES]
        found[image, : len(order)] = together[order]
    return found


def _kept(boxes: np.ndarray, scores: np.ndarray) -> list[int]:
    """Returns the places of the boxes of a class that are kept, the surest first."""
    left = np.flatnonzero(scores > LEAST_SCORE)
    left = left[np.argsort(-scores[left], kind="stable")]
    kept: list[int] = []
    while len(left) and len(kept) < MOST_BOXES:
        kept.append(int(left[0]))
        left = left[1:][_overlaps(boxes[left[0]], boxes[left[1:]]) <= OVERLAP]
    return kept


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the intersection over union of a box with others, float32 `[n]`; each has an area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    height, width = np.maximum(high - low, np.float32(0)).T
    common = height * width
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    return common / ((box[2] - box[0]) * (box[3] - box[1]) + areas - common)


def _sections(data: bytes, bounds: Sequence[int]) -> list[bytes]:
    """Returns the sections of a task's file, which must be where they have to be."""
    begin, sections = TASK_HEADER.size, []
    for offset, length in zip(bounds[::2], bounds[1::2]):
        _check(offset == begin and length <= len(data) - DIGEST - offset, "its sections are not where they should be")
        sections.append(data[offset : offset + length])
        begin = _aligned(offset + length)
        _check(not any(data[offset + length : begin]), "bytes between its sections are not zero")
    _check(begin == len(data) - DIGEST, "its sections do not fill it")
    return sections


def _masked_places(masked: bytes, manifest: Manifest) -> list[int]:
    """Returns the places of the filters that a task masks."""
    _check(len(masked) == len(manifest.entries) and max(masked) <= 1, "its list of masked filters is impossible")
    places = [place for place, flag in enumerate(masked) if flag]
    _check(all(manifest.entries[place].kind == FILTER for place in places), "it masks what is no filter")
    return places


def _split_masks(data: bytes, counts: Sequence[int], planes: int) -> Iterator[np.ndarray]:
    """Yields the mask of each filter, uint8 `[planes, ceil(n / 8)]`."""
    _check(len(data) == sum(planes * -(-count // 8) for count in counts), "its masks have another length")
    start = 0
    for count in counts:
        length = -(-count // 8)
        mask = np.frombuffer(data, np.uint8, planes * length, start).reshape(planes, length)
        _check(not (count % 8 and (mask[:, -1] >> count % 8).any()), "bits behind the last weight are set")
        _check(planes == 1 or not (mask[1] & ~mask[0]).any(), "a weight is negated and dropped")
        yield mask
        start += planes * length


def _head(data: bytes, features: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    _check(len(data) == 4 * (features + 1) * classes, "its head has another size")
    values = np.frombuffer(data, "<f4")
    _check(np.isfinite(values).all(), "its head holds numbers that are not finite")
    return values[:-classes].reshape(features, classes), values[-classes:]


def _corrections(
    data: bytes, manifest: Manifest, flags: int
) -> tuple[dict[int, np.ndarray], dict[int, bytes], dict[int, Composition]]:
    """Returns ratios, new bytes and compositions by the place of their entry."""
    ratios, new_bytes, compositions = {}, {}, {}
    start, last, seen = 0, -1, 0
    while start < len(data):
        _check(len(data) - start > 16, "its corrections end early")
        place, kind, length = struct.unpack_from("<IIQ", data, start)
        end = start + 16 + length
        _check(
            last < place < len(manifest.entries) and 1 <= length <= len(data) - start - 16, "a correction is impossible"
        )
        entry, content = manifest.entries[place], data[start + 16 : end]
        start, last = _aligned(end), place
        _check(start <= len(data) and not any(data[end:start]), "bytes behind a correction are not zero")
        seen |= HEAD_INSIDE if entry.kind in (7, 8) else OWN_NORM
        if kind == RATIOS:
            _check(entry.kind == FILTER and length == 4 * entry.channels, "ratios are for what has none")
            ratio = np.frombuffer(content, _RATIO_DTYPE)
            good = np.isin(ratio, (1, -1)) if entry.dtype.kind == "i" else np.isfinite(ratio)
            _check(bool(good.all()), "ratios are impossible")
            ratios[place] = ratio
        elif kind == COMPOSED:
            _check(entry.kind == FILTER, "a composition is for what is no filter")
            compositions[place] = _composition(content, entry)
        else:
            _check(kind == NEW_BYTES and entry.kind != FILTER, "a correction is of an unknown kind")
            _check(length <= entry.nbytes and length % entry.dtype.itemsize == 0, "new bytes have the wrong length")
            new_bytes[place] = content
    _check(seen == flags & (OWN_NORM | HEAD_INSIDE), "its corrections are not those that its flags say")
    return ratios, new_bytes, compositions


def _composition(data: bytes, entry: Entry) -> Composition:
    """Returns what a filter is made of, from its correction."""
    _check(len(data) >= COMPOSITION.size, "a composition ends early")
    has, rank, columns, inner, *numbers = COMPOSITION.unpack_from(data)
    _check(has < 8, "a composition has what is not known")
    low_rank = bool(has & HAS_FACTORS)
    _check(low_rank == bool(rank) == bool(columns) == bool(inner), "the factors of a composition are impossible")
    good = not low_rank or (rank <= _MAX_COUNT and entry.size % (columns * inner) == 0)
    _check(good, "the factors of a composition are impossible")
    rows = entry.size // columns if low_rank else 0
    counts = [entry.scale_count, entry.channels * bool(has & HAS_RATIOS), entry.channels * bool(has & HAS_OFFSETS)]
    counts += [rows * rank, rank * columns]
    _check(len(data) == COMPOSITION.size + 4 * sum(counts), "a composition has another length than its numbers")
    values = np.frombuffer(data, _RATIO_DTYPE, sum(counts), COMPOSITION.size)
    _check(bool(np.isfinite(values).all() and np.isfinite(numbers).all()), "a composition is not finite")
    scales, ratios, offsets, down, up = np.split(values, np.cumsum(counts)[:-1])
    _check(bool((scales > 0).all()), "the scales of a composition are not above zero")
    first = np.array(numbers, np.float32)
    return Composition(
        first[:3], first[3:], scales, ratios if has & HAS_RATIOS else None, offsets if has & HAS_OFFSETS else None,
        down.reshape(rows, rank) if low_rank else None, up.reshape(rank, columns) if low_rank else None, inner or 1,
    )  # fmt: skip


def _strings(data: bytes, count: int) -> list[str]:
    """Returns exactly so many strings."""
    strings, start = [], 0
    for _ in range(count):
        _check(len(data) - start >= 4, "its text ends early")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4 + length
        _check(length <= _MAX_TEXT and start <= len(data), "a text in it is too long")
        try:
            strings.append(data[start - length : start].decode("utf-8"))
        except UnicodeDecodeError:
            raise EdgeError("a text in it is no UTF-8") from None
    _check(start == len(data), "there is more text than it has classes")
    return strings


def decode_masks(words: bytes, rates: bytes, counts: Sequence[int], planes: int) -> bytes:
    """Returns the bits of compressed masks; see "Coded layers" in docs/pack-format.md.

    Args:
        words: What the entropy coder wrote.
        rates: The codes of rates: for each filter one, or two if masks are ternary.
        counts: How many weights each filter has.
        planes: 2 if masks are ternary, else 1.

    Raises:
        EdgeError: If they are no masks of filters of these sizes.
    """
    _check(len(rates) == planes * len(counts) and len(words) % 4 == 0, "its coded masks have another length")
    stack = np.frombuffer(words, "<u4").tolist()
    _check(not stack or stack[-1] != 0, "its coded masks end in a zero")
    state = stack.pop() if stack else 0
    if stack:
        state = state << 32 | stack.pop()
    parts = []
    for index, count in enumerate(counts):
        drop, negate = rates[planes * index], rates[planes * index + 1] if planes == 2 else 0
        values, state = _decode_values(stack, state, count, _starts(_rate(drop), _rate(negate)))
        symbols = np.frombuffer(values, np.uint8)
        parts += [np.packbits(symbols > plane, bitorder="little").tobytes() for plane in range(planes)]
    _check(state == 0 and not stack, "more is coded than its masks")
    return b"".join(parts)


def _rate(code: int) -> int:
    """Returns the rate that a byte stands for, in 2^-16."""
    low = min(code, 255 - code)
    rate = low if low < 16 else min((8 + low % 8) << (low // 8 - 1), 32768)
    return rate if code < 128 else 65536 - rate


def _starts(drop: int, negate: int) -> list[tuple[int, int, int]]:
    """Returns the values that occur, each with its first number out of 2^24 and how many numbers it has."""
    shares = [drop << 16, (65536 - drop) * (65536 - negate), (65536 - drop) * negate]
    values = [value for value in range(3) if shares[value]]
    rest, total, starts = float((1 << 24) - len(values)), 0, []
    for place, value in enumerate(values):
        starts.append(int(total / 2.0**32 * rest) + place)
        total += shares[value]
    return [(v, s, e - s) for v, s, e in zip(values, starts, [*starts[1:], 1 << 24])]


def _decode_values(stack: list[int], state: int, count: int, starts: list[tuple[int, int, int]]) -> tuple[bytes, int]:
    """Returns the next values, one byte each, and the coder's state behind them; takes words off the stack."""
    if len(starts) == 1:
        return bytes([starts[0][0]]) * count, state
    values = bytearray(count)
    (low, first, low_size), (middle, second, middle_size) = starts[0], starts[1]
    high, third, high_size = starts[2] if len(starts) == 3 else (0, 1 << 24, 0)
    # The loop that takes the time: a million weights take about half a second.
    for index in range(count):
        number = state & 0xFFFFFF
        if number < second:
            values[index] = low
            state = (state >> 24) * low_size + number - first
        elif number < third:
            values[index] = middle
            state = (state >> 24) * middle_size + number - second
        else:
            values[index] = high
            state = (state >> 24) * high_size + number - third
        if state < 0x100000000 and stack:
            state = state << 32 | stack.pop()
    return bytes(values), state


class Base:
    """A base.tflite and its manifest.

    Args:
        data: The content of base.tflite.
        manifest: Its manifest.
        verify: Whether to compare its SHA-256; that of ResNet-50 takes a while on a small device.
        name: Stands for the file in errors.

    Raises:
        EdgeError: If it is not the base of the manifest.
    """

    def __init__(self, data: bytes, manifest: Manifest, *, verify: bool = True, name: str = "base.tflite"):
        self.data, self.manifest = data, manifest
        if len(data) != manifest.base_size or (verify and hashlib.sha256(data).digest() != manifest.base_sha256):
            raise EdgeError(f"{name!r} is damaged, or is not the base that its manifest was written for.")

    @classmethod
    def load(cls, path: str | os.PathLike, manifest: str | os.PathLike | None = None, *, verify: bool = True) -> Base:
        """Reads a base and its manifest, by default `manifest.bin` beside it."""
        if manifest is None:
            manifest = Path(path).parent / "manifest.bin"
            if not manifest.exists():
                raise EdgeError(f"There is no {str(manifest)!r} beside the base; --manifest says where it is.")
        return cls(_read(path, _MAX_BASE), Manifest.load(manifest), verify=verify, name=os.fspath(path))


class Model:
    """A copy of a base in memory, on which tasks are installed; `data` is what an interpreter takes.

    An interpreter must be made anew after each change: it keeps filters in an order of its own.

    Args:
        base: The base, which does not change.
    """

    def __init__(self, base: Base):
        self.base = base
        self.task: Task | None = None
        self._data = bytearray(base.data)

    @property
    def data(self) -> bytearray:
        """The model as it is now; not to be written to."""
        return self._data

    @property
    def digest(self) -> bytes:
        """What stands for all that is in the model: the digest of its task, which names a base, or the base's."""
        return self.base.manifest.base_sha256 if self.task is None else self.task.digest

    def install(self, task: Task) -> None:
        """Puts a task in the place of what was installed.

        Raises:
            EdgeError: If the task was read for another base, or not from a file.
        """
        if task.manifest != self.base.manifest:
            raise EdgeError(f"Task {_printable(task.name)!r} was read for another base.tflite.")
        if not any(task.digest):
            raise EdgeError(
                f"Task {_printable(task.name)!r} has no digest, which a task has that was read from a file."
            )
        self.task = task
        self._mark(task.digest)
        for place, entry in enumerate(self.base.manifest.entries):
            _put(entry, place, task, self.base.data, self._data)

    def remove(self) -> None:
        """Makes the model the base again."""
        self.task = None
        self._mark(bytes(DIGEST))
        for entry in self.base.manifest.entries:
            part = slice(entry.offset, entry.offset + entry.nbytes)
            self._data[part] = self.base.data[part]

    def _mark(self, digest: bytes) -> None:
        """Writes down what is on the model."""
        if place := self.base.manifest.task_place:
            self._data[place : place + DIGEST] = digest


def _put(entry: Entry, place: int, task: Task, base: bytes, out: bytearray) -> None:
    """Writes a constant as a task wants it."""
    part = slice(entry.offset, entry.offset + entry.nbytes)
    if place in task.new_bytes:
        out[part] = task.new_bytes[place].ljust(entry.nbytes, b"\0")
    elif place in task.compositions:
        target = np.frombuffer(out, entry.dtype, entry.size, entry.offset)
        target[:] = _composed(entry, task.compositions[place], task.masks.get(place), base)
    elif place in task.ratios or place in task.masks:
        source = np.frombuffer(base, entry.dtype, entry.size, entry.offset)
        target = np.frombuffer(out, entry.dtype, entry.size, entry.offset)
        if place in task.ratios:
            source = _scaled(source, task.ratios[place], entry)
        _apply_mask(source, task.masks.get(place), target)
    else:
        out[part] = base[part]


def _scaled(weights: np.ndarray, ratios: np.ndarray, entry: Entry) -> np.ndarray:
    """Returns a filter with each channel multiplied by its ratio, rounded to the filter's type."""
    shape = (-1, entry.channels, entry.inner)
    factors = ratios[:, None]
    if entry.dtype.kind == "i":
        return (weights.reshape(shape) * factors.astype(np.int8)).reshape(-1)
    with np.errstate(over="ignore", under="ignore"):
        product = (weights.reshape(shape).astype(np.float32) * factors).reshape(-1)
        return _rounded(product, entry)


def _rounded(values: np.ndarray, entry: Entry) -> np.ndarray:
    """Returns float32 numbers in the floating point type of a filter; what becomes infinite in float16 is 65504."""
    rounded = values.astype(entry.dtype)
    if entry.dtype.itemsize == 2:
        infinite = np.isinf(rounded)
        rounded[infinite] = np.copysign(np.float16(65504), values[infinite])
    return rounded


def _composed(entry: Entry, made_of: Composition, mask: np.ndarray | None, base: bytes) -> np.ndarray:
    """Returns a filter that a task makes of the base's: each product and each sum in float32, one after another."""
    shape = (-1, entry.channels, entry.inner)
    values = np.frombuffer(base, entry.dtype, entry.size, entry.offset).astype(np.float32).reshape(shape)
    quantised = entry.dtype.kind == "i"
    with np.errstate(all="ignore"):
        if quantised:
            values = values * np.frombuffer(base, _RATIO_DTYPE, entry.scale_count, entry.scale_offset)[:, None]
        # 0, 1, or 2 where a weight is negated.
        places = np.ones(entry.size, np.intp)
        if mask is not None:
            places = np.unpackbits(mask, axis=1, count=entry.size, bitorder="little").sum(axis=0, dtype=np.intp)
        values = values * made_of.factors[places].reshape(shape)
        added = made_of.added[places].reshape(shape)
        if made_of.ratios is not None:
            values = values * made_of.ratios[:, None]
        if made_of.offsets is not None:
            added = added * made_of.offsets[:, None]
        values = values + added
        if made_of.down is not None and made_of.up is not None:
            down = made_of.down.reshape(-1, 1, made_of.inner, len(made_of.up))
            product = down[..., 0] * made_of.up[0][:, None]
            for rank in range(1, len(made_of.up)):
                product = product + down[..., rank] * made_of.up[rank][:, None]
            values = values + product.reshape(shape)
        if not quantised:
            return _rounded(values.reshape(-1), entry)
        numbers = np.rint(values / made_of.scales[:, None])
        # What is no number is the smallest.
        return np.where(numbers > -127, np.minimum(numbers, 127), -127).astype(np.int8).reshape(-1)


def _apply_mask(weights: np.ndarray, mask: np.ndarray | None, out: np.ndarray) -> None:
    """Writes masked weights: all bits 0 where the mask drops, else the weight, negated where the mask says so."""
    if mask is None:
        out[:] = weights
        return
    words, target = (array.view(f"i{array.itemsize}") for array in (weights, out))
    keep, sign = _tables(words.dtype)
    spread = np.take(keep, mask[0], axis=0).reshape(-1)[: words.size]
    np.bitwise_and(words, spread, out=target)
    if len(mask) == 1 or not mask[1].any():
        return
    if weights.dtype.kind == "f":
        target ^= np.take(sign, mask[1], axis=0).reshape(-1)[: words.size]
    else:
        np.negative(target, out=target, where=np.unpackbits(mask[1], count=words.size, bitorder="little").view(bool))


@functools.lru_cache
def _tables(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each byte of a mask, eight words to AND with (all bits or none) and to XOR with (the sign bit)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(dtype)
    return bits * dtype.type(-1), bits * np.iinfo(dtype).min


def write_file(path: str | os.PathLike, data: bytes | bytearray) -> None:
    """Writes a file, whole or not at all: `path` with ".tmp" behind it is written, flushed to the disk and renamed.

    When the power fails, perhaps a temporary file is left, which the next call uses again, so that no room is lost. A
    file that is replaced keeps its mode; a new one has 0644 without what the umask takes away.

    Raises:
        EdgeError: If another process writes the same file, or what is there is no file but a folder or a device.
        OSError: If it cannot be written.
    """
    path = Path(path)
    # A device would be replaced by a file, for everybody on the machine.
    if path.exists() and not path.is_file():
        raise EdgeError(f"{os.fspath(path)!r} cannot be written: what is there is no file.")
    try:
        _write_beside(path, data)
    except OSError as error:
        # That of a full disk names no file.
        error.filename = error.filename or os.fspath(path)
        raise
    # Windows opens no folders.
    if not _WINDOWS:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_beside(path: Path, data: bytes | bytearray) -> None:
    """Writes a temporary file beside a path, and renames it."""
    temporary = path.with_name(f"{path.name}.tmp")
    # Windows has no links that are followed unasked, and would write other ends of lines.
    flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(temporary, flags, 0o644), "wb") as stream:
        if not _owns(stream, temporary):
            raise EdgeError(f"{os.fspath(path)!r} cannot be written: another process writes it.")
        try:
            stream.truncate(0)
            stream.write(data)
            stream.flush()
            if path.exists() and not _WINDOWS:
                os.fchmod(stream.fileno(), path.stat().st_mode & 0o777)
            os.fsync(stream.fileno())
            _close_on_windows(stream)
            temporary.replace(path)
        except BaseException:
            _close_on_windows(stream)
            temporary.unlink(missing_ok=True)
            raise


def _owns(stream: BinaryIO, path: Path) -> bool:
    """Locks a file that is open, and returns whether no other process has it, and it is still the one at a path."""
    try:
        if _WINDOWS:
            import msvcrt

            # What is open there is not renamed meanwhile. The lock ends when the file is closed.
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]  # Windows' alone.
            return True
        # Not at the top: Windows does not have it.
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever holds the lock owns the temporary file, unless it was renamed before the lock was there.
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False


def _close_on_windows(stream: BinaryIO) -> None:
    """Closes a file where one that is open can be neither renamed nor removed."""
    if _WINDOWS:
        stream.close()


class _errors_of:  # noqa: N801 (used like a function)
    """Puts the name of a file before errors about its content."""

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, EdgeError):
            raise EdgeError(f"{self._name!r} cannot be used: {error}.") from None


def _check(good: bool, message: str) -> None:
    if not good:
        raise EdgeError(message)


def _check_file(data: bytes, magic: bytes, header: int, size_place: int, versions: Sequence[int]) -> None:
    """Checks what both kinds of files begin and end with."""
    _check(data[:8] == magic, "it is a file of another kind")
    _check(len(data) >= header + DIGEST, "it is cut off")
    (version,) = struct.unpack_from("<I", data, 8)
    _check(version in versions, f"it is of version {version}, and this reads version {versions[-1]}")
    _check(struct.unpack_from("<Q", data, size_place)[0] == len(data), "it is cut off, or there is more than its end")
    _check(hashlib.sha256(data[:-DIGEST]).digest() == data[-DIGEST:], "its checksum is not that of its content")


def _read(path: str | os.PathLike, most: int) -> bytes:
    with Path(path).open("rb") as stream:
        if os.fstat(stream.fileno()).st_size > most:
            raise EdgeError(f"{os.fspath(path)!r} cannot be used: it has more than {most} bytes.")
        return stream.read()


def _aligned(offset: int) -> int:
    return -(-offset // 8) * 8


def _printable(text: str) -> str:
    """Returns a text that a file brought, with everything escaped that could not be printed."""
    return text if text.isprintable() else repr(text)


def _interpreter(data: bytes, threads: int) -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise EdgeError("predict needs the package ai_edge_litert or tflite_runtime.") from None
    interpreter = Interpreter(model_content=data, num_threads=threads)
    interpreter.allocate_tensors()
    return interpreter


def _runner(interpreter: Any, task: Task) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Returns what runs the graph of a task: from images to the outputs by name."""
    if task.manifest.graphs:
        runner = interpreter.get_signature_runner(task.signature.name)
        return lambda image: runner(images=image)

    # Older runtimes have no signatures, and these bases one graph.
    def run(image: np.ndarray) -> dict[str, np.ndarray]:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        return {"output": interpreter.get_tensor(interpreter.get_output_details()[0]["index"])}

    return run


def check_pixels(image: np.ndarray) -> None:
    """Checks that images hold what a base takes: numbers in [0, 255].

    Raises:
        EdgeError: If not, or if they are floating point numbers that end at 1, as if they were scaled to [0, 1].
    """
    _check(
        image.dtype.kind in "uif", f"the image holds {image.dtype}, and a base takes integers or floating point numbers"
    )
    low, high = (image.min(), image.max()) if image.size else (0, 0)
    # NaN compares as false.
    _check(low >= 0 and high <= 255, f"the image holds values of {low} to {high}, and a base takes those in [0, 255]")
    _check(
        image.dtype.kind != "f" or not 0 < high <= 1,
        f"the image ends at {high} as if scaled to [0, 1]; multiply it by 255, or pass what is so dark as bytes",
    )


def prepare(image: np.ndarray, augment: str) -> np.ndarray:
    """Prepares an image as it was in the task's training; needs Pillow.

    Args:
        image: uint8 `[height, width, 3]`, RGB.
        augment: The task's `augment`.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        EdgeError: If the augmentation has other steps than resize and central_crop, or the image does not fit.
    """
    images = _images()
    for step in augment.split("|") if augment.strip() else []:
        name, numbers = _step(step)
        height, width = image.shape[:2]
        if name == "resize":
            size = numbers if len(numbers) == 2 else images.resized_size(height, width, *numbers)
            _check(
                size[0] * size[1] <= images.MAX_PIXELS,
                f"the image would have {size[0]}x{size[1]} pixels after {step!r}",
            )
            image = images.resize(image, *size)
        else:
            _check(min(height, width) >= numbers[0], f"the image has {height}x{width} pixels, too few for {step!r}")
            image = images.central_crop(image, *numbers)
    return image


def at_own_size(labels: np.ndarray, augment: str, size: tuple[int, int]) -> np.ndarray:
    """Returns a label map for an image as it was before it was prepared.

    Each pixel of the image has the label of the place that its middle went to, and one that was cut off that of the
    nearest place that was not.

    Args:
        labels: What was found in the prepared image, uint8 `[height, width]`.
        augment: The task's `augment`.
        size: `(height, width)` of the image before.

    Raises:
        EdgeError: If the augmentation has other steps than resize and central_crop, or gives another size.
    """
    sides, scales, begins = _way_back(augment, size)
    _check(labels.shape == tuple(sides), f"the label map is of {labels.shape}, and the image becomes {tuple(sides)}")
    places = []
    for side, scale, begin, last in zip(size, scales, begins, sides):
        found = np.floor(1 / scale * (np.arange(side) + 0.5) - 1 / scale * begin)
        places.append(np.clip(found, 0, last - 1).astype(np.int64))
    return labels[places[0][:, None], places[1][None]]


def boxes_at_own_size(boxes: np.ndarray, augment: str, size: tuple[int, int]) -> np.ndarray:
    """Returns boxes for an image as it was before it was prepared, cut to it.

    Args:
        boxes: ymin, xmin, ymax and xmax in pixels of the prepared image, `[..., 4]`.
        augment: The task's `augment`.
        size: `(height, width)` of the image before.

    Returns:
        float64 `[..., 4]`.

    Raises:
        EdgeError: If the augmentation has other steps than resize and central_crop.
    """
    _, scales, begins = _way_back(augment, size)
    return np.clip(boxes * np.array(scales * 2) + np.array(begins * 2), 0, np.array([*size] * 2, np.float64))


def _way_back(augment: str, size: tuple[int, int]) -> tuple[list[int], list[float], list[float]]:
    """Returns the sides of a prepared image, and where its places are in the one before: at `scale x + begin`."""
    sides, scales, begins = list(size), [1.0, 1.0], [0.0, 0.0]
    for step in augment.split("|") if augment.strip() else []:
        name, numbers = _step(step)
        if name == "resize":
            after = list(numbers if len(numbers) == 2 else _images().resized_size(*sides, *numbers))
            scales = [scale * (old / new) for scale, old, new in zip(scales, sides, after)]
        else:
            after = [numbers[0]] * 2
            cut = [(side - numbers[0]) // 2 for side in sides]
            begins = [scale * place + begin for begin, scale, place in zip(begins, scales, cut)]
        sides = after
    return sides, scales, begins


def _step(text: str) -> tuple[str, list[int]]:
    """Returns the name and the numbers of a step of an augmentation, such as "resize(256)"."""
    names = {"resize": ("size", "width"), "central_crop": ("size",)}
    try:
        call: Any = ast.parse(text.strip(), mode="eval").body
        name = call.func.id
        given = dict(zip(names[name], call.args)) | {word.arg: word.value for word in call.keywords}
        numbers = [ast.literal_eval(given[word]) for word in names[name] if word in given]
        # Each number has a name of its own, and the first is there.
        good = len(numbers) == len(call.args) + len(call.keywords) and "size" in given
        if good and all(type(number) is int and 1 <= number <= 8192 for number in numbers):
            return name, numbers
    except (SyntaxError, ValueError, AttributeError, KeyError, MemoryError, RecursionError):
        pass
    raise EdgeError(f"the task prepares images with {_printable(text)!r}; here are resize and central_crop")


@functools.lru_cache
def _images() -> Any:
    """Returns the module that decodes image files as training does."""
    path = Path(__file__).with_name("piggyback_images.py")
    try:
        if not path.is_file():
            # This file is not in an export but in its project.
            from piggyback_tf.data import images

            return images
        spec = importlib.util.spec_from_file_location(path.stem, path)
        images = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(images)
        return images
    except ImportError:
        raise EdgeError(
            "Image files need the package Pillow, and piggyback_images.py beside this program; .npy files need neither."
        ) from None


def _load_image(
    path: str, shape: int | tuple[int, int], augment: str = ""
) -> tuple[np.ndarray, tuple[int, int] | None]:
    """Returns an image, float32 `[1, height, width, 3]`, and `(height, width)` of the file.

    The shape that it must have is `(height, width)`, or the side of a square. A .npy file is taken as it is, and nobody
    knows what it was before; others are prepared for a task.
    """
    if path.endswith(".npy"):
        try:
            image = np.load(path, allow_pickle=False)
        except (ValueError, EOFError):
            image = None
        if not isinstance(image, np.ndarray) or image.dtype.kind not in "uif":
            raise EdgeError(f"{path!r} is no .npy file of numbers.")
    else:
        image = _images().read_image(path)
    size, shape = None, (shape, shape) if isinstance(shape, int) else shape
    with _errors_of(path):
        if path.endswith(".npy"):
            check_pixels(image)
        else:
            size = image.shape[:2]
            image = prepare(image, augment)
        _check(image.shape == (*shape, 3), f"its shape is {list(image.shape)}; the base takes {[*shape, 3]}")
    return image[None].astype(np.float32), size


def _inspect(options: argparse.Namespace) -> None:
    base = Base.load(options.base, options.manifest, verify=False)
    manifest = base.manifest
    masked = sum(manifest.entries[place].size for place in manifest.filters)
    heads = [
        f"a head of {each.room} classes inside" if each.room else f"{each.features} features"
        for each in manifest.signatures
    ]
    several = manifest.graphs
    ends = f"{len(several)} kinds of tasks" if several else heads[0]
    print(f"{options.base}: {len(base.data):,} bytes, quantisation {manifest.quantize}, {ends}")
    print(f"  SHA-256 {manifest.base_sha256.hex()}, base hash {manifest.base_hash.hex()[:12]}")
    sizes = ["{} x {}".format(*each.image_shape) for each in manifest.signatures]
    images = "" if several else f"images {sizes[0]}; "
    print(f"  {images}{len(manifest.filters)} filters, {masked:,} weights")
    for each, size, head in zip(several, sizes, heads):
        print(f"  signature {each.name}: images {size}, {head}")
    for path in options.tasks:
        task = Task.load(path, manifest)
        kind = "ternary" if task.flags & TERNARY else "binary"
        extras = [name for flag, name in ((COMPRESSED, "compressed"), (OWN_NORM, _own_norm(task))) if task.flags & flag]
        print(f"{path}: {task.nbytes:,} bytes, task {_printable(task.name)}, {', '.join([kind, *extras])}")
        if task.version > 1:
            print(f"  problem {_printable(task.problem)}, signature {task.signature.name}")
        print(f"  preparation: {_printable(task.augment)}")
        print(f"  {len(task.labels)} classes: {', '.join(map(_printable, task.labels))}")


def _own_norm(task: Task) -> str:
    """Returns what a task changes beside masks and head, as far as its file says."""
    if task.compositions:
        return f"own batch norm or vectors, {len(task.compositions)} filters made in other ways than by masks"
    return "own batch norm or vectors"


def _verify(options: argparse.Namespace) -> None:
    base = Base.load(options.base, options.manifest)
    for path in options.tasks:
        Task.load(path, base.manifest)
    tasks = f"are {len(options.tasks)} tasks" if len(options.tasks) > 1 else "is the task"
    print(f"{options.base} is whole, and so {tasks} for it")


def _install(options: argparse.Namespace) -> None:
    base = Base.load(options.base, options.manifest)
    task = Task.load(options.task, base.manifest)
    _check_target(options, options.task)
    model = Model(base)
    model.install(task)
    _write_model(model, options.target)


def _remove(options: argparse.Namespace) -> None:
    base = Base.load(options.base, options.manifest)
    _check_target(options)
    _write_model(Model(base), options.target)


def _write_model(model: Model, target: str) -> None:
    """Writes a model, and removes caches of weights that were made of what was there before."""
    write_file(target, model.data)
    cache = weight_cache(target, model.digest)
    for path in Path(target).parent.iterdir():
        name = path.name.removeprefix(f"{Path(target).name}.")
        if path.name != cache.name and name != path.name and _CACHE_NAME.fullmatch(name) and path.is_file():
            path.unlink(missing_ok=True)
    print(target)
    print(f"  a weight cache of XNNPACK, if the app keeps one, belongs to this task alone: {cache}")
    if not model.base.manifest.task_place:
        print(
            "  the base is of version 1, whose models do not say which task is on them: with the head of another task "
            "they answer wrongly, and nobody notices; export it anew"
        )


def weight_cache(target: str | os.PathLike, digest: bytes) -> Path:
    """Returns where an app may keep XNNPACK's weight cache of a model: another file for each base and task.

    XNNPACK does not compare a cache with the model: with that of another task it answers as that task, or as the base.

    Args:
        target: The model's file.
        digest: `Model.digest`, or what `Manifest.installed` says of the model; of the base itself its SHA-256.
    """
    return Path(target).with_name(f"{Path(target).name}.{digest.hex()[:32]}.xnnpack")


def _installed(options: argparse.Namespace) -> None:
    base = Base.load(options.base, options.manifest)
    content = _read(options.target, _MAX_BASE)
    digest = base.manifest.installed(content)
    if digest is None:
        _check(content == base.data, f"{options.target!r} has no task on it, and is not the base: it is damaged.")
        print(f"{options.target}: no task, it is the base")
        return
    folders = dict.fromkeys(Path(path).parent for path in (options.base, options.target))
    beside = [path for folder in folders for path in sorted(folder.glob("*.edge"))]
    for path in options.tasks or beside:
        try:
            task = Task.load(path, base.manifest)
        except EdgeError:
            # Beside the base there may be tasks of other bases.
            if options.tasks:
                raise
            continue
        if task.digest == digest:
            model = Model(base)
            model.install(task)
            _check(content == model.data, f"{options.target!r} says that task {task.name!r} is on it, but is damaged.")
            print(f"{options.target}: task {_printable(task.name)} of {os.fspath(path)!r}")
            return
    print(f"{options.target}: a task with the digest {digest.hex()}, which is in none of the files that were looked at")


def _check_target(options: argparse.Namespace, *others: str) -> None:
    """Fails if what is to be written, or its temporary file, is read: the base, its manifest, or one of the others.

    It fails as well if another file is there that is no model, such as another task.
    """
    manifest = options.manifest or Path(options.base).parent / "manifest.bin"
    for written in (options.target, f"{options.target}.tmp"):
        for path in (options.base, manifest, *others):
            if Path(written).exists() and Path(written).samefile(path):
                what = "the base itself" if path is options.base else "read for this"
                raise EdgeError(f"{written!r} is {what} and never written to; name another target.")
    if Path(options.target).is_file():
        with Path(options.target).open("rb") as file:
            start = file.read(8)
        if start and start[4:] != b"TFL3":
            raise EdgeError(f"{options.target!r} is there already, and is no model; name another target.")


def _predict(options: argparse.Namespace) -> bool:
    """Prints the classes of images, and returns whether all have some; one that has none is no end of the others."""
    base = Base.load(options.base, options.manifest)
    task, model = Task.load(options.task, base.manifest), Model(base)
    model.install(task)
    content = bytes(model.data)
    _check_output(options, task)
    run, good = _runner(_interpreter(content, options.threads), task), True
    for path in options.images:
        try:
            image, size = _load_image(path, task.signature.image_shape, task.augment)
        except (EdgeError, OSError, ValueError) as error:
            print(f"piggyback_edge: {error}", file=sys.stderr)
            good = False
            continue
        outputs = run(image)
        output = next(iter(outputs.values()))
        numbers = (
            list(outputs.values()) if task.answer in ("argmax", "boxes") else [task.probabilities(output, content)]
        )
        if not all(np.isfinite(each).all() for each in numbers):
            print(
                f"piggyback_edge: {path!r} has no answer: the model returned numbers that are not finite.",
                file=sys.stderr,
            )
            good = False
            continue
        if task.answer == "boxes":
            print(f"{path}: {_told_boxes(task, task.boxes(outputs['scores'], outputs['sides'], content)[0], size)}")
            continue
        if task.answer == "argmax":
            labels = task.label_maps(output, content)[0]
            labels = labels if size is None else at_own_size(labels, task.augment, size)
            chances = np.bincount(labels.reshape(-1), minlength=len(task.labels)) / labels.size
            if options.output_dir:
                _write_labels(options.output_dir, path, labels)
        else:
            chances = numbers[0][0]
        best = np.argsort(-chances, kind="stable")[: options.top]
        print(f"{path}: " + ", ".join(f"{_printable(task.labels[i])} {chances[i]:.4f}" for i in best))
    return good


def _told_boxes(task: Task, boxes: np.ndarray, size: tuple[int, int] | None) -> str:
    """Returns what is printed of the boxes of an image, in pixels of its file."""
    found = boxes[(boxes[:, 4] >= 0) & (boxes[:, 5] >= _BELIEVED)]
    edges = found[:, :4] if size is None else boxes_at_own_size(found[:, :4], task.augment, size)
    told = [
        f"{_printable(task.labels[int(row[4])])} {row[5]:.4f} ({left:.1f}, {top:.1f} to {right:.1f}, {bottom:.1f})"
        for row, (top, left, bottom, right) in zip(found, edges)
    ]
    return ", ".join(told) or f"no box with a score of {_BELIEVED} or more"


def _check_output(options: argparse.Namespace, task: Task) -> None:
    """Fails if label maps are asked for that there are not, or two images would have one file."""
    if not options.output_dir:
        return
    if task.answer != "argmax":
        raise EdgeError(f"Task {_printable(task.name)!r} finds no label maps; leave --output_dir out.")
    names = [Path(path).name for path in options.images]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EdgeError(f"Two images are called {twice[0]!r}, and their label maps would have one file.")
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)


def _write_labels(folder: str, image: str, labels: np.ndarray) -> None:
    """Writes a label map: of a .npy file as .npy, else as a PNG whose pixels are numbers of classes."""
    stream = io.BytesIO()
    if image.endswith(".npy"):
        np.save(stream, labels)
    else:
        # There is Pillow, since the image was decoded.
        from PIL import Image

        Image.fromarray(labels).save(stream, "PNG")
    name = f"{Path(image).name}.labels.{'npy' if image.endswith('.npy') else 'png'}"
    write_file(Path(folder) / name, stream.getvalue())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="piggyback_edge", description="Installs tasks on a base.tflite.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    helps = {
        "task": "file of a task (.edge)",
        "tasks": "files of tasks (.edge)",
        "target": "the copy of the base (.tflite)",
        "images": "image files, or prepared images in .npy files",
    }
    for name, run, help_text, arguments in (
        ("inspect", _inspect, "print what is in a base and in files of tasks", ("tasks*",)),
        ("verify", _verify, "check a base against its manifest, and files of tasks", ("tasks*",)),
        ("install", _install, "write a copy of the base with a task installed", ("task", "target")),
        ("installed", _installed, "print which task is on a copy", ("target", "tasks*")),
        ("remove", _remove, "write a copy of the base without a task", ("target",)),
        ("predict", _predict, "answer for image files, or prepared images in .npy files", ("task", "images+")),
    ):
        command = commands.add_parser(name, help=help_text, allow_abbrev=False)
        command.set_defaults(run=run)
        command.add_argument("base", help="base.tflite")
        for argument in arguments:
            nargs = argument[-1] if argument[-1] in "*+" else None
            plain = argument.rstrip("*+")
            default = "; default: those beside the base and the copy" if (name, plain) == ("installed", "tasks") else ""
            command.add_argument(plain, nargs=nargs, help=helps[plain] + default)
        command.add_argument("--manifest", help="manifest.bin; default: the one beside the base")
        if name == "predict":
            command.add_argument("--top", type=_count, default=5, help="how many classes to print; default: 5")
            command.add_argument("--output_dir", help="folder for label maps of a segmentation task")
            command.add_argument("--threads", type=_count, default=1, help="threads of the interpreter; default: 1")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of at least 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status."""
    options = _arguments().parse_args(arguments)
    try:
        return 2 if options.run(options) is False else 0
    # The runtimes say with RuntimeError that they cannot compute a model.
    except (EdgeError, OSError, RuntimeError, ValueError) as error:
        print(f"piggyback_edge: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("piggyback_edge: there is not enough memory", file=sys.stderr)
        return 2


def _flushed(status: int) -> int:
    """Writes what is left of the output, and returns the status to end with: an answer that did not arrive is none."""
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"piggyback_edge: the output cannot be written: {error.strerror}", file=sys.stderr)
        # Python tries again at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    return status


if __name__ == "__main__":
    # Labels in letters that the terminal does not have are no reason to fail.
    cast(Any, sys.stdout).reconfigure(errors="backslashreplace")
    sys.exit(_flushed(main()))
