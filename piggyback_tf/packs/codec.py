"""Masks in a file: a range coder with one probability for a layer, or for each rectangle of channel classes.

Layers follow one another in one stream, so that a layer costs no more than its own bits. How a layer is coded is
written beside it: the encoder takes for each layer what is smallest.
"""

import dataclasses
import math
from typing import Any

import constriction
import numpy as np

from piggyback_tf.packs import bits
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.partition import (
    ALL_ONES,
    ALL_ZEROS,
    MAX_CLASSES,
    PROBABILITY_ONE,
    Partition,
    channel_view_shape,
    find_partition,
    probability_of,
    whole_layer,
)

CODECS = ("best", "static", "bits")
# How a layer is coded: by the range coder, or as it is.
LAYER_CODECS = ("range", "bits")
# Symbols are 32-bit integers on their way to and from the range coder: a part of a layer at a time.
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class CodedLayer:
    """One line of the index: a weight with a mask.

    Attributes:
        path: The weight's canonical path.
        shape: Its shape.
        zeros: How many weights are dropped.
        codec: One of `LAYER_CODECS`.
        classes: Numbers of input and of output classes; `(1, 1)` is one probability for the layer.
    """

    path: str
    shape: tuple[int, ...]
    zeros: int
    codec: str
    classes: tuple[int, int] = (1, 1)

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedMasks:
    """The masks of a task as they are in a file.

    Attributes:
        kind: `"binary"` or `"ternary"`.
        layers: The index, in layer order.
        probabilities: All probabilities, uint16, in layer order; see `docs/pack-format.md`.
        stream: What the range coder wrote, uint32.
        raw: The packed bits of the layers that are coded as they are, uint8.
    """

    kind: str
    layers: tuple[CodedLayer, ...]
    probabilities: np.ndarray
    stream: np.ndarray
    raw: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of coded masks and model parameters, without the index."""
        return self.probabilities.nbytes + self.stream.nbytes + self.raw.nbytes

    def decode(self) -> dict[str, MaskBits]:
        """Returns the masks by path.

        Raises:
            ValueError: If this is not what `encode` makes of any masks of these shapes.
        """
        decoder = _Decoder(self)
        try:
            masks = {layer.path: MaskBits(layer.shape, decoder.layer(layer)) for layer in self.layers}
        except AssertionError as error:
            # The range coder's way to say it.
            raise ValueError("The coded masks are no output of the range coder.") from error
        decoder.finish()
        for layer in self.layers:
            if bits.count_zeros(masks[layer.path].packed, layer.shape) != layer.zeros:
                raise ValueError(f"The mask of {layer.path!r} has another number of zeros than the index says.")
        return masks


def encode(masks: dict[str, MaskBits], kind: str, codec: str = "best") -> EncodedMasks:
    """Encodes the masks of a task.

    Args:
        masks: Packed masks by path, in layer order.
        kind: `"binary"` or `"ternary"`.
        codec: `"best"` takes for each layer what is smallest, `"static"` one probability for each layer (its entropy
            if weights were dropped independently), `"bits"` one bit a weight (two if ternary).

    Raises:
        ValueError: If there is no such codec.
    """
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}. Received: {codec!r}.")
    encoder = _Encoder(kind, codec)
    for path, mask in masks.items():
        encoder.add(path, mask)
    return encoder.result()


class _Encoder:
    def __init__(self, kind: str, codec: str):
        self._kind, self._codec = kind, codec
        self._coder = constriction.stream.queue.RangeEncoder()
        self._layers: list[CodedLayer] = []
        self._probabilities: list[np.ndarray] = []
        self._raw: list[np.ndarray] = []

    def add(self, path: str, mask: MaskBits) -> None:
        zeros = bits.count_zeros(mask.packed, mask.shape)
        kept = mask.size - zeros
        partition = whole_layer(mask.shape, kept)
        view = None
        if self._codec == "best" and zeros and kept:
            view = _unpacked(mask.packed[0], mask.size).reshape(channel_view_shape(mask.shape))
            partition = find_partition(view)
        negated = bits.count_ones(mask.packed[1]) if self._kind == "ternary" else 0
        signs = whole_layer((max(1, kept),), kept - negated) if self._kind == "ternary" else None
        length = partition.bits + (signs.bits if signs else 0)
        if self._codec == "bits" or (self._codec == "best" and length >= 8 * mask.packed.size):
            self._layers.append(CodedLayer(path, mask.shape, zeros, "bits"))
            self._raw.append(mask.packed.reshape(-1))
            return
        self._layers.append(CodedLayer(path, mask.shape, zeros, "range", partition.probabilities.shape))
        if view is None:
            view = _unpacked(mask.packed[0], mask.size).reshape(channel_view_shape(mask.shape))
        self._add_partition(view, partition)
        if signs:
            self._probabilities.append(probability_of(negated, kept).reshape(-1))
            self._add_symbols(_unpacked(mask.packed[1], mask.size)[view.reshape(-1) == 1], self._probabilities[-1][0])

    def result(self) -> EncodedMasks:
        return EncodedMasks(
            self._kind,
            tuple(self._layers),
            np.concatenate([np.zeros(0, np.uint16), *self._probabilities]),
            self._coder.get_compressed(),
            np.concatenate([np.zeros(0, np.uint8), *self._raw]),
        )

    def _add_partition(self, view: np.ndarray, partition: Partition) -> None:
        for number, classes in zip(partition.probabilities.shape, (partition.inputs, partition.outputs), strict=True):
            if number > 1:
                self._coder.encode(classes.astype(np.int32), _uniform(number))
        self._probabilities.append(partition.probabilities.reshape(-1))
        members = [np.flatnonzero(partition.outputs == b) for b in range(partition.probabilities.shape[1])]
        for a, row in enumerate(partition.probabilities):
            block = view[:, partition.inputs == a]
            for columns, probability in zip(members, row, strict=True):
                self._add_symbols(np.take(block, columns, axis=2).reshape(-1), probability)

    def _add_symbols(self, symbols: np.ndarray, probability: int) -> None:
        if probability not in (ALL_ZEROS, ALL_ONES):
            model = _bernoulli(probability)
            for start in range(0, symbols.size, _CHUNK):
                self._coder.encode(symbols[start : start + _CHUNK].astype(np.int32), model)


class _Decoder:
    def __init__(self, encoded: EncodedMasks):
        self._kind, self._raw = encoded.kind, encoded.raw
        self._probabilities = encoded.probabilities
        self._coder = constriction.stream.queue.RangeDecoder(np.ascontiguousarray(encoded.stream, np.uint32))

    def layer(self, layer: CodedLayer) -> np.ndarray:
        """Returns the packed bits of the next layer."""
        shape = bits.packed_shape(layer.shape, self._kind)
        if layer.codec == "bits":
            return self._take("_raw", math.prod(shape), "packed bits").reshape(shape).copy()
        packed = np.empty(shape, np.uint8)
        kept = self._partition(channel_view_shape(layer.shape), layer.classes)
        packed[0] = np.packbits(kept, bitorder="little")
        if self._kind == "ternary":
            negated = np.zeros(layer.size, np.uint8)
            places = np.flatnonzero(kept.reshape(-1))
            negated[places] = self._symbols(len(places), self._take("_probabilities", 1, "probabilities")[0])
            packed[1] = np.packbits(negated, bitorder="little")
        return packed

    def finish(self) -> None:
        """Checks that everything was used."""
        if self._probabilities.size or self._raw.size or not self._coder.maybe_exhausted():
            raise ValueError("More is coded than the index says.")

    def _partition(self, view: tuple[int, int, int], numbers: tuple[int, int]) -> np.ndarray:
        """Returns which weights are kept, uint8 `[S, I, O]`."""
        positions, *channels = view
        classes = [self._classes(size, number) for size, number in zip(channels, numbers, strict=True)]
        sizes = [np.bincount(assigned, minlength=number) for assigned, number in zip(classes, numbers, strict=True)]
        probabilities = self._take("_probabilities", math.prod(numbers), "probabilities").reshape(numbers)
        ordered = np.empty(view, np.uint8)
        top = 0
        for a, height in enumerate(sizes[0]):
            left = 0
            for b, width in enumerate(sizes[1]):
                symbols = self._symbols(positions * height * width, probabilities[a, b])
                ordered[:, top : top + height, left : left + width] = symbols.reshape(positions, height, width)
                left += width
            top += height
        # Back from the order of the classes to that of the channels.
        for axis, number in enumerate(numbers, start=1):
            if number > 1:
                ordered = np.take(ordered, np.argsort(np.argsort(classes[axis - 1], kind="stable")), axis=axis)
        return ordered

    def _classes(self, size: int, number: int) -> np.ndarray:
        return self._coder.decode(_uniform(number), size) if number > 1 else np.zeros(size, np.int32)

    def _symbols(self, count: int, probability: int) -> np.ndarray:
        if probability in (ALL_ZEROS, ALL_ONES):
            return np.full(count, int(probability == ALL_ONES), np.uint8)
        symbols, model = np.empty(count, np.uint8), _bernoulli(probability)
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            symbols[start:end] = self._coder.decode(model, end - start)
        return symbols

    def _take(self, name: str, count: int, what: str) -> np.ndarray:
        """Returns the next elements of an array, and takes them off it."""
        values = getattr(self, name)
        if values.size < count:
            raise ValueError(f"There are fewer {what} than the index says.")
        setattr(self, name, values[count:])
        return values[:count]


def check_layer(entry: Any) -> CodedLayer:
    """Returns the line of an index for what JSON made of it.

    Raises:
        ValueError: If it is not one that `encode` could have written.
    """
    if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
        raise ValueError("The index has an entry without a path.")
    path, shape, classes = entry["path"], entry.get("shape"), entry.get("classes", [1, 1])
    if set(entry) - {"classes"} != {"path", "shape", "zeros", "codec"} or entry["codec"] not in LAYER_CODECS:
        raise ValueError(f"The index is wrong at {path!r}: it has other entries than it should, or an unknown codec.")
    if not isinstance(shape, list) or not shape or not all(type(side) is int and side > 0 for side in shape):
        raise ValueError(f"The index is wrong at {path!r}: {shape!r} is no shape of a weight.")
    if type(entry["zeros"]) is not int or not 0 <= entry["zeros"] <= math.prod(shape):
        raise ValueError(f"The index is wrong at {path!r}: {entry['zeros']!r} is no number of zeros.")
    if not isinstance(classes, list) or len(classes) != 2 or not all(type(c) is int for c in classes):
        raise ValueError(f"The index is wrong at {path!r}: {classes!r} are no numbers of classes.")
    for number, channels in zip(classes, channel_view_shape(tuple(shape))[1:], strict=True):
        if not 1 <= number <= min(MAX_CLASSES, channels):
            raise ValueError(f"The index is wrong at {path!r}: {channels} channels cannot be in {number} classes.")
    return CodedLayer(path, tuple(shape), entry["zeros"], entry["codec"], (classes[0], classes[1]))


def layer_entry(layer: CodedLayer) -> dict[str, Any]:
    """Returns what JSON holds of a line of the index; `check_layer` reads it."""
    entry = {"path": layer.path, "shape": list(layer.shape), "zeros": layer.zeros, "codec": layer.codec}
    return entry | ({"classes": list(layer.classes)} if layer.classes != (1, 1) else {})


def _bernoulli(probability: int) -> Any:
    # The coder accepts any number, -1 and 2 too. Only a 16-bit integer that is not one of the extremes comes here, and
    # its quotient is exact.
    return constriction.stream.model.Bernoulli(int(probability) / PROBABILITY_ONE, perfect=False)


def _uniform(number: int) -> Any:
    return constriction.stream.model.Uniform(number)


def _unpacked(packed: np.ndarray, count: int) -> np.ndarray:
    return np.unpackbits(packed, count=count, bitorder="little")
