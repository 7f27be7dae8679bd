"""Channel classes: which channels of a layer drop weights alike.

Input and output channels of a trained mask differ in how many weights they drop. Sorted into a few classes each, every
rectangle of an input and an output class has a rate of zeros of its own, which takes fewer bits than one rate for the
layer. The classes are found by alternating between the two axes (the block model of Dhillon, Mallela and Modha,
"Information-theoretic co-clustering", KDD 2003).
"""

import dataclasses
import math

import numpy as np

from piggyback_tf.packs.rates import RATE_BITS, RATE_ONE, RATES, rate_code

MAX_CLASSES = 16
_CLASSES = (1, 2, 3, 4, 6, 8, 12, MAX_CLASSES)
_ROUNDS = 8
# Matrix products are made in pieces of so many multiplications: of these BLAS makes no threads, which would wait for
# one another many times as long as the product takes where other work keeps the processor busy.
_PIECE = 1 << 18
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
    dropped = np.array([[positions * inputs * outputs - kept]], np.float64)
    counts = np.array([[positions * inputs * outputs]], np.float64)
    return _partition(np.zeros(inputs, np.uint8), np.zeros(outputs, np.uint8), dropped, counts)


def find_partition(mask: np.ndarray) -> Partition:
    """Returns the partition with the shortest code that the search finds; one rectangle if nothing is shorter.

    Args:
        mask: Which weights are kept, bool `[S, I, O]`.
    """
    positions, inputs, outputs = mask.shape
    # Small counts in a small type: the largest kernels have 10^8 of them.
    dropped = (positions - mask.sum(axis=0, dtype=np.int32)).astype(np.uint8 if positions < 256 else np.int32)
    best = whole_layer(mask.shape, int(mask.sum(dtype=np.int64)))
    places, tried = (0, 0), {(0, 0)}
    while True:
        steps = [(places[0] + 1, places[1]), (places[0], places[1] + 1), (places[0] + 1, places[1] + 1)]
        found = []
        for step in steps:
            if step in tried or max(step) >= len(_CLASSES):
                continue
            tried.add(step)
            a, b = (_CLASSES[place] for place in step)
            if a <= inputs and b <= outputs:
                found.append((_co_cluster(dropped, positions, a, b), step))
        if not found:
            return best
        partition, step = min(found, key=lambda item: item[0].bits)
        if partition.bits >= best.bits:
            return best
        best, places = partition, step


def _co_cluster(dropped: np.ndarray, positions: int, inputs: int, outputs: int) -> Partition:
    """Sorts channels by their zeros into classes, then moves each to the class in which its code is shortest."""
    by_input, by_output = dropped.sum(axis=1, dtype=np.int64), dropped.sum(axis=0, dtype=np.int64)
    rows, columns = _by_rank(by_input, inputs), _by_rank(by_output, outputs)
    best = None
    for _ in range(_ROUNDS):
        # Both products hold integers below 2^53, so that float64 adds them without rounding.
        row_dropped = _sum_columns(dropped, columns, outputs)
        row_counts = positions * np.bincount(columns, minlength=outputs).astype(np.float64)
        block_dropped = _sum_rows(row_dropped, rows, inputs)
        block_counts = np.outer(np.bincount(rows, minlength=inputs), row_counts)
        partition = _partition(rows, columns, block_dropped, block_counts)
        if best is not None and partition.bits >= best.bits:
            break
        best = partition
        drop_bits, keep_bits = _lengths(block_dropped, block_counts)
        lengths = row_dropped @ drop_bits.T + (row_counts - row_dropped) @ keep_bits.T + _class_bits(rows, inputs)
        rows = np.argmin(lengths, axis=1).astype(np.uint8)
        block_dropped = _sum_rows(row_dropped, rows, inputs)
        row_sizes = np.bincount(rows, minlength=inputs).astype(np.float64)
        drop_bits, keep_bits = _lengths(block_dropped, np.outer(row_sizes, row_counts))
        column_dropped = _sum_columns(dropped.T, rows, inputs)
        rest = positions * row_sizes - column_dropped
        lengths = column_dropped @ drop_bits + rest @ keep_bits + _class_bits(columns, outputs)
        columns = np.argmin(lengths, axis=1).astype(np.uint8)
    return best


def _partition(rows: np.ndarray, columns: np.ndarray, dropped: np.ndarray, counts: np.ndarray) -> Partition:
    rates = rate_code(dropped, counts)
    bits = _event_bits(dropped, counts).sum() + RATE_BITS * rates.size
    for number, assigned in zip(rates.shape, (rows, columns), strict=True):
        sizes = np.bincount(assigned, minlength=number).astype(np.float64)
        # As many of those that are left are in each class.
        left = sizes.sum() - np.concatenate([[0], np.cumsum(sizes)[:-1]])
        bits += _event_bits(sizes[:-1], left[:-1]).sum() + RATE_BITS * (number - 1)
    return Partition(rows, columns, rates, float(bits))


def _event_bits(events: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the bits of what happens `events` times of `counts`, coded at the rate of its code."""
    codes = rate_code(events, counts)
    return events * _HAPPENS[codes] + (counts - events) * _FAILS[codes]


def _lengths(dropped: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits of a dropped and of a kept weight in each rectangle, of which none is impossible."""
    p = (dropped + 0.05) / (counts + 0.1)
    return _exact(-np.log2(p)), _exact(-np.log2(1 - p))


def _class_bits(assigned: np.ndarray, number: int) -> np.ndarray:
    """Returns what it takes to say that a channel is in each class, if they stay as large as they are."""
    return _exact(-np.log2((np.bincount(assigned, minlength=number) + 0.5) / (len(assigned) + 0.5 * number)))


def _exact(bits: np.ndarray) -> np.ndarray:
    return np.round(bits * _EXACT) / _EXACT


# The bits of an event, and of its absence, by the code of its rate; what is certain takes none.
with np.errstate(divide="ignore"):
    _HAPPENS, _FAILS = (np.where(p > 0, _exact(-np.log2(p)), 0) for p in (RATES / RATE_ONE, 1 - RATES / RATE_ONE))


def _by_rank(values: np.ndarray, classes: int) -> np.ndarray:
    """Returns classes of equal size by rank."""
    result = np.empty(len(values), np.uint8)
    result[np.argsort(values, kind="stable")] = np.arange(len(values)) * classes // len(values)
    return result


def _sum_columns(counts: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    """Returns the sums over the columns of each class, float64 `[rows, number]`."""
    members = np.eye(number, dtype=np.float32)[classes]
    # float32 holds these sums exactly: a row has fewer than 2^24 weights.
    step = max(1, _PIECE // members.size)
    blocks = [counts[i : i + step].astype(np.float32) @ members for i in range(0, len(counts), step)]
    return np.concatenate(blocks).astype(np.float64)


def _sum_rows(counts: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    return np.eye(number)[classes].T @ counts
