"""Channel classes: which channels of a layer drop weights alike.

Input and output channels of a trained mask differ in how many weights they drop. They are sorted by that and cut into
a few classes each. Every rectangle of an input and an output class has a rate of zeros of its own, which takes fewer
bits than one rate for the layer.
"""

import dataclasses
import functools
import itertools
import math

import numpy as np

from piggyback_tf.packs.zero_rates import RATE_BITS, RATE_ONE, RATES, rate_code

MAX_CLASSES = 16
_CLASSES = (1, 2, 3, 4, 6, 8, 12, MAX_CLASSES)
# Lengths in bits are rounded to multiples of 2^-16: sums of them are then exact in float64, whatever the order in which
# a processor adds them, and the same mask gives the same classes everywhere.
_EXACT = 65536.0


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Classes of a layer's channels, and one rate of dropped weights for each rectangle of classes.

    Attributes:
        inputs: The class of each input channel, uint8 `[I]`.
        outputs: The class of each output channel, uint8 `[O]`.
        rates: uint8 `[A, B]`, for A input and B output classes: codes of the rate of dropped weights.
        bits: The length of the layer's code with this partition, rates and classes included.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    rates: np.ndarray
    bits: float


def channel_view_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns `(S, I, O)`: positions, input and output channels of a kernel in C order.

    A depthwise kernel `[height, width, channels, 1]` and a convolution's `[height, width, in, out]` are read alike, a
    Dense kernel has one position, and a vector's elements are input channels.
    """
    if len(shape) == 1:
        return 1, shape[0], 1
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def members(assigned: np.ndarray, number: int) -> list[np.ndarray]:
    """Returns, for each class but the last, which of the channels in no class before it are in it, uint8 0 or 1."""
    return [(assigned[assigned >= c] == c).astype(np.uint8) for c in range(number - 1)]


def whole_layer(shape: tuple[int, ...], kept: int) -> Partition:
    """Returns the partition into one rectangle: one rate for a layer that keeps `kept` weights."""
    positions, inputs, outputs = channel_view_shape(shape)
    weights = positions * inputs * outputs
    rates, bits = _rates_and_bits(np.array([[weights - kept]]), np.array([[weights]]))
    return Partition(np.zeros(inputs, np.uint8), np.zeros(outputs, np.uint8), rates, bits)


def find_partition(mask: np.ndarray) -> Partition:
    """Returns the partition with the shortest code of all pairs of cuts; one rectangle if nothing is shorter.

    Args:
        mask: Which weights are kept, bool `[S, I, O]`.
    """
    positions, inputs, outputs = mask.shape
    best = whole_layer(mask.shape, int(mask.sum(dtype=np.int64)))
    # How many weights each pair of channels drops.
    dropped = np.logical_not(mask).sum(axis=0, dtype=np.min_scalar_type(positions))
    rows = _Axis(dropped.sum(axis=1, dtype=np.int64), positions * outputs)
    columns = _Axis(dropped.sum(axis=0, dtype=np.int64), positions * inputs)
    # The weights are counted once, between all cuts; those of larger classes are sums.
    table = np.add.reduceat(dropped[:, columns.order], columns.all_cuts, axis=1, dtype=np.int64)
    table = np.add.reduceat(table[rows.order], rows.all_cuts, axis=0)
    for row_cuts, column_cuts in itertools.product(rows.cuts, columns.cuts):
        blocks = np.add.reduceat(table, np.searchsorted(rows.all_cuts, row_cuts), axis=0)
        blocks = np.add.reduceat(blocks, np.searchsorted(columns.all_cuts, column_cuts), axis=1)
        counts = positions * np.outer(rows.sizes(row_cuts), columns.sizes(column_cuts))
        rates, bits = _rates_and_bits(blocks, counts)
        bits += rows.class_bits(row_cuts) + columns.class_bits(column_cuts)
        if bits < best.bits:
            best = Partition(rows.classes(row_cuts), columns.classes(column_cuts), rates, bits)
    return best


class _Axis:
    """The channels of one axis, sorted by how many weights they drop, and where they may be cut into classes.

    Cuts make classes of equal size, or such that each drops about as many weights; keeps, where those are fewer. Where
    few weights are dropped, most of them are in a few channels, which the second way sets apart.

    Attributes:
        order: The channels in their order.
        cuts: Places in it at which classes begin, one array for each way to cut.
        all_cuts: All of them, sorted.
    """

    def __init__(self, dropped: np.ndarray, weights: int):
        """Sorts the channels.

        Args:
            dropped: The dropped weights of each channel, int64 `[N]`.
            weights: How many weights a channel has.
        """
        size = len(dropped)
        rare = dropped if 2 * dropped.sum() <= weights * size else weights - dropped
        self.order = np.argsort(rare, kind="stable")
        before = np.concatenate([[0], np.cumsum(rare[self.order])])
        found: dict[tuple[int, ...], None] = {}
        for number in _CLASSES:
            if number <= size:
                parts = np.arange(number)
                by_mass = np.searchsorted(before[:-1] * number, parts * before[-1])
                for cuts in (-(-parts * size // number), by_mass):
                    found[tuple(sorted({0, *(int(cut) for cut in cuts if cut < size)}))] = None
        self.cuts = [np.array(cuts) for cuts in found]
        self.all_cuts = np.unique(np.concatenate(self.cuts))

    def sizes(self, cuts: np.ndarray) -> np.ndarray:
        """Returns how many channels each class has."""
        return np.diff(np.append(cuts, len(self.order)))

    def classes(self, cuts: np.ndarray) -> np.ndarray:
        """Returns the class of each channel, uint8."""
        result = np.empty(len(self.order), np.uint8)
        result[self.order] = np.searchsorted(cuts, np.arange(len(self.order)), side="right") - 1
        return result

    def class_bits(self, cuts: np.ndarray) -> float:
        """Returns the bits that say which channel is in which class; `members` takes them apart."""
        left = len(self.order) - cuts[:-1]
        return _event_bits(self.sizes(cuts)[:-1], left).sum() + RATE_BITS * len(left)


def _rates_and_bits(dropped: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the codes of the rates of rectangles, and the bits of these codes and of all weights."""
    rates = rate_code(dropped, counts)
    return rates, float(_event_bits(dropped, counts).sum() + RATE_BITS * rates.size)


def _event_bits(events: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the bits of what happens `events` times of `counts`, coded at the rate of its code."""
    happens, fails = _bits_by_code()
    codes = rate_code(events, counts)
    return events * happens[codes] + (counts - events) * fails[codes]


@functools.cache
def _bits_by_code() -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits of an event, and of its absence, by the code of its rate; what is certain takes none."""
    with np.errstate(divide="ignore"):
        chances = (RATES / RATE_ONE, 1 - RATES / RATE_ONE)
        happens, fails = (np.where(p > 0, np.round(-np.log2(p) * _EXACT) / _EXACT, 0) for p in chances)
    return happens, fails
