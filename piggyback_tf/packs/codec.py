"""Masks in packs and in `.edge` files: entropy-coded, with one rate of zeros for a layer or for parts of its channels.

The patchers on devices, `export/edge/piggyback_edge.py` and the one in C++, have decoders of their own.

Layers follow one another in one stream, so that a layer costs no more than its own bits. How a layer is coded is
written beside it: the encoder takes for each layer what is smallest. The coder is ANS (asymmetric numeral systems): as
short as range coding, and faster to decode.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import constriction
import numpy as np

from piggyback_tf.foreign_text import shown
from piggyback_tf.packs import bits
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.container import PackError, check_shape
from piggyback_tf.packs.partition import (
    MAX_CLASSES,
    Partition,
    channel_view_shape,
    find_partition,
    members,
    whole_layer,
)
from piggyback_tf.packs.zero_rates import NEVER, RATE_BITS, RATE_ONE, RATES, rate_code
from piggyback_tf.settings.records import check_choice

CODECS = ("best", "static", "bits")
# How a layer is coded: by the entropy coder, or as it is.
LAYER_CODECS = ("ans", "bits")
# Symbols are 32-bit integers on their way to and from the entropy coder: a part of a layer at a time.
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True)
class CodedLayer:
    """One line of the index: a weight with a mask.

    Attributes:
        path: The weight's canonical path.
        shape: Its shape.
        zeros: How many weights are dropped.
        codec: One of `LAYER_CODECS`.
        classes: Numbers of input and of output classes; `(1, 1)` is one rate for the layer.
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
        rates: Codes of all rates, uint8, in layer order; see `zero_rates.py` and `docs/pack-format.md`.
        stream: What the entropy coder wrote, uint32.
        raw: The packed bits of the layers that are coded as they are, uint8.
    """

    kind: str
    layers: tuple[CodedLayer, ...]
    rates: np.ndarray
    stream: np.ndarray
    raw: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of coded masks, rates included, without the index."""
        return self.rates.nbytes + self.stream.nbytes + self.raw.nbytes

    def decode(self) -> dict[str, MaskBits]:
        """Returns the masks by path.

        Raises:
            ValueError: If this is not what `encode` makes of any masks of these shapes.
        """
        decoder = _Decoder(self)
        masks = {layer.path: MaskBits(layer.shape, decoder.layer(layer)) for layer in self.layers}
        decoder.finish()
        for layer in self.layers:
            if bits.count_zeros(masks[layer.path].packed, layer.shape) != layer.zeros:
                raise ValueError(f"The mask of {shown(layer.path)} has another number of zeros than the index says.")
        return masks


def encode(masks: Mapping[str, MaskBits], kind: str, codec: str = "best") -> EncodedMasks:
    """Encodes the masks of a task.

    Args:
        masks: Packed masks by path, in layer order.
        kind: `"binary"` or `"ternary"`.
        codec: `"best"` takes for each layer what is smallest, `"static"` one rate of zeros for each layer, `"bits"` one
            bit a weight (two if ternary). From 0.01 % to 99.99 % of zeros, a static layer takes at most 1.0012 times
            its entropy if weights were dropped independently, and a byte for the rate.

    Raises:
        ValueError: If there is no such codec.
    """
    check_choice("codec", codec, CODECS)
    encoder = _Encoder(kind, codec)
    for path, mask in masks.items():
        encoder.add(path, mask)
    return encoder.result()


class _Encoder:
    def __init__(self, kind: str, codec: str):
        self._kind, self._codec = kind, codec
        # Symbols and their model, in the order of decoding. The coder is a stack: it takes them from the last one on.
        self._coded: list[tuple[np.ndarray, Any]] = []
        self._layers: list[CodedLayer] = []
        self._rates: list[np.ndarray] = []
        self._raw: list[np.ndarray] = []

    def add(self, path: str, mask: MaskBits) -> None:
        zeros = bits.count_zeros(mask.packed, mask.shape)
        kept = mask.size - zeros
        values = _unpacked(mask) if self._codec != "bits" else None
        partition = whole_layer(mask.shape, kept)
        if self._codec == "best" and zeros and kept:
            partition = find_partition(np.not_equal(values, 0))
        negated = bits.count_ones(mask.packed[1]) if self._kind == "ternary" else 0
        signs = whole_layer((max(1, kept),), kept - negated) if self._kind == "ternary" else None
        length = partition.bits + (signs.bits if signs else 0)
        if values is None or (self._codec == "best" and length >= 8 * mask.packed.size):
            self._layers.append(CodedLayer(path, mask.shape, zeros, "bits"))
            self._raw.append(mask.packed.reshape(-1))
            return
        self._layers.append(CodedLayer(path, mask.shape, zeros, "ans", partition.rates.shape))
        self._add_layer(values, partition, rate_code(negated, kept))

    def result(self) -> EncodedMasks:
        coder = constriction.stream.stack.AnsCoder()
        for symbols, model in reversed(self._coded):
            for start in reversed(range(0, symbols.size, _CHUNK)):
                coder.encode_reverse(symbols[start : start + _CHUNK].astype(np.int32), model)
        return EncodedMasks(
            self._kind,
            tuple(self._layers),
            np.concatenate([np.zeros(0, np.uint8), *self._rates]),
            coder.get_compressed(),
            np.concatenate([np.zeros(0, np.uint8), *self._raw]),
        )

    def _add_layer(self, values: np.ndarray, partition: Partition, negate: np.ndarray) -> None:
        for number, classes in zip(partition.rates.shape, (partition.inputs, partition.outputs), strict=True):
            for inside in members(classes, number):
                rate = rate_code(inside.sum(), inside.size)
                self._rates.append(rate.reshape(1))
                self._add_symbols(inside, _member_shares(rate))
        self._rates.append(partition.rates.reshape(-1))
        if self._kind == "ternary":
            self._rates.append(negate.reshape(1))
        columns = [np.flatnonzero(partition.outputs == b) for b in range(partition.rates.shape[1])]
        for a, row in enumerate(partition.rates):
            block = values[:, partition.inputs == a]
            for places, rate in zip(columns, row, strict=True):
                self._add_symbols(np.take(block, places, axis=2).reshape(-1), _weight_shares(rate, negate))

    def _add_symbols(self, values: np.ndarray, shares: tuple[int, ...]) -> None:
        alphabet, model = _model(shares)
        if model:
            symbols = values if _numbered(alphabet) else np.searchsorted(alphabet, values)
            self._coded.append((symbols.astype(np.uint8), model))


class _Decoder:
    def __init__(self, encoded: EncodedMasks):
        self._kind, self._raw = encoded.kind, encoded.raw
        self._rates = encoded.rates
        if encoded.stream.size and not encoded.stream[-1]:
            raise ValueError("The coded masks end in a zero, which the coder never writes.")
        self._coder = constriction.stream.stack.AnsCoder(np.ascontiguousarray(encoded.stream, np.uint32))

    def layer(self, layer: CodedLayer) -> np.ndarray:
        """Returns the packed bits of the next layer."""
        shape = bits.packed_shape(layer.shape, self._kind)
        if layer.codec == "bits":
            return self._take("_raw", math.prod(shape), "packed bits").reshape(shape).copy()
        values = self._values(channel_view_shape(layer.shape), layer.classes)
        packed = np.empty(shape, np.uint8)
        packed[0] = np.packbits(values, bitorder="little")
        if self._kind == "ternary":
            values >>= 1
            packed[1] = np.packbits(values, bitorder="little")
        return packed

    def finish(self) -> None:
        """Checks that everything was used."""
        if self._rates.size or self._raw.size or not self._coder.is_empty():
            raise ValueError("More is coded than the index says.")

    def _values(self, view: tuple[int, int, int], numbers: tuple[int, int]) -> np.ndarray:
        """Returns which weights are dropped (0), kept (1) and negated (2), uint8 `[S, I, O]`."""
        positions, *channels = view
        classes = [self._classes(size, number) for size, number in zip(channels, numbers, strict=True)]
        sizes = [np.bincount(assigned, minlength=number) for assigned, number in zip(classes, numbers, strict=True)]
        rates = self._take("_rates", math.prod(numbers), "rates").reshape(numbers)
        negate = self._take("_rates", 1, "rates")[0] if self._kind == "ternary" else NEVER
        if numbers == (1, 1):
            return (
                self._symbols(math.prod(view), _weight_shares(rates[0, 0], negate))
                .astype(np.uint8, copy=False)
                .reshape(view)
            )
        ordered = np.empty(view, np.uint8)
        top = 0
        for a, height in enumerate(sizes[0]):
            left = 0
            for b, width in enumerate(sizes[1]):
                shares = _weight_shares(rates[a, b], negate)
                # Not kept in a variable: it may be as large as the layer, and the copies below are made one at a time.
                ordered[:, top : top + height, left : left + width] = self._symbols(
                    positions * height * width, shares
                ).reshape(positions, height, width)
                left += width
            top += height
        # Back from the order of the classes to that of the channels.
        for axis, number in enumerate(numbers, start=1):
            if number > 1:
                ordered = np.take(ordered, np.argsort(np.argsort(classes[axis - 1], kind="stable")), axis=axis)
        return ordered

    def _classes(self, size: int, number: int) -> np.ndarray:
        """Returns the class of each channel; `members` takes them apart."""
        classes = np.full(size, number - 1, np.uint8)
        left = np.arange(size)
        for c in range(number - 1):
            inside = self._symbols(left.size, _member_shares(self._take("_rates", 1, "rates")[0])) == 1
            classes[left[inside]] = c
            left = left[~inside]
        return classes

    def _symbols(self, count: int, shares: tuple[int, ...]) -> np.ndarray:
        """Returns the next values, integers `[count]`; as the coder gives them, int32, if they are few."""
        alphabet, model = _model(shares)
        if not model:
            return np.full(count, alphabet[0], np.uint8)
        if count <= _CHUNK and _numbered(alphabet):
            return self._coder.decode(model, count)
        symbols = np.empty(count, np.uint8)
        for start in range(0, count, _CHUNK):
            end = min(start + _CHUNK, count)
            symbols[start:end] = self._coder.decode(model, end - start)
        return symbols if _numbered(alphabet) else np.array(alphabet, np.uint8)[symbols]

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
    shape, classes = entry.get("shape"), entry.get("classes", [1, 1])
    wrong = f"The index is wrong at {shown(entry['path'])}"
    if set(entry) - {"classes"} != {"path", "shape", "zeros", "codec"} or entry["codec"] not in LAYER_CODECS:
        raise ValueError(f"{wrong}: it has other entries than it should, or an unknown codec.")
    try:
        check_shape(shape)
    except PackError as error:
        raise ValueError(f"{wrong}: {error}") from error
    if type(entry["zeros"]) is not int or not 0 <= entry["zeros"] <= math.prod(shape):
        raise ValueError(f"{wrong}: {shown(entry['zeros'])} is no number of zeros.")
    if "classes" in entry and (entry["codec"] == "bits" or classes == [1, 1]):
        raise ValueError(f"{wrong}: it has classes that it should not have.")
    if not isinstance(classes, list) or len(classes) != 2 or not all(type(c) is int for c in classes):
        raise ValueError(f"{wrong}: {shown(classes)} are no numbers of classes.")
    for number, channels in zip(classes, channel_view_shape(tuple(shape))[1:], strict=True):
        if not 1 <= number <= min(MAX_CLASSES, channels):
            raise ValueError(f"{wrong}: {channels} channels cannot be in {number} classes.")
    if RATE_BITS * (classes[0] * classes[1] - 1) > math.prod(shape):
        raise ValueError(f"{wrong}: {classes} classes take more bits than they can save.")
    return CodedLayer(entry["path"], tuple(shape), entry["zeros"], entry["codec"], (classes[0], classes[1]))


def layer_entry(layer: CodedLayer) -> dict[str, Any]:
    """Returns what JSON holds of a line of the index; `check_layer` reads it."""
    entry = {"path": layer.path, "shape": list(layer.shape), "zeros": layer.zeros, "codec": layer.codec}
    return entry | ({"classes": list(layer.classes)} if layer.classes != (1, 1) else {})


def _weight_shares(drop: Any, negate: Any) -> tuple[int, ...]:
    """Returns how often a weight is dropped, kept and negated, in 2^-32, by codes of rates: of all, of those kept."""
    dropped, negated = int(RATES[drop]), int(RATES[negate])
    return dropped * RATE_ONE, (RATE_ONE - dropped) * (RATE_ONE - negated), (RATE_ONE - dropped) * negated


def _member_shares(rate: Any) -> tuple[int, ...]:
    """Returns how often a channel is outside and inside of a class, in 2^-32, by the code of a rate."""
    inside = int(RATES[rate])
    return (RATE_ONE - inside) * RATE_ONE, inside * RATE_ONE


@functools.lru_cache(maxsize=1024)
def _model(shares: tuple[int, ...]) -> tuple[tuple[int, ...], Any]:
    """Returns the values that occur, and the model of the symbols that number them; None if there is one only."""
    alphabet = tuple(value for value, share in enumerate(shares) if share)
    if len(alphabet) == 1:
        return alphabet, None
    # Multiples of 2^-32, exact in float64; they add up to one.
    probabilities = np.array([shares[value] / RATE_ONE**2 for value in alphabet])
    return alphabet, constriction.stream.model.Categorical(probabilities, perfect=False, lazy=False)


def _numbered(alphabet: tuple[int, ...]) -> bool:
    """Returns whether the values number themselves."""
    return alphabet[-1] == len(alphabet) - 1


def _unpacked(mask: MaskBits) -> np.ndarray:
    """Returns which weights are dropped (0), kept (1) and negated (2), uint8 `[S, I, O]`."""
    planes = np.unpackbits(mask.packed, axis=1, count=mask.size, bitorder="little")
    return planes.sum(axis=0, dtype=np.uint8).reshape(channel_view_shape(mask.shape))
