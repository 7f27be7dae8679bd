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
# Layers of more weights are searched from one start only.
_MANY = 1 << 24
# Rounds of moving channels: in each attempt, and to finish the best of them.
_ROUNDS, _LAST_ROUNDS = 3, 8
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
    dropped = _Dropped(mask)
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
                found += [(_co_cluster(dropped, *start, (a, b), _ROUNDS), step) for start in _starts(dropped, a, b)]
        partition, step = min(found, key=lambda item: item[0].bits, default=(best, places))
        if partition.bits >= best.bits:
            break
        best, places = partition, step
    if best.rates.size == 1:
        return best
    finished = _co_cluster(dropped, best.inputs, best.outputs, best.rates.shape, _LAST_ROUNDS)
    return finished if finished.bits < best.bits else best


class _Dropped:
    """Counts of a layer's dropped weights.

    They are taken on bits, 64 weights at a time: the search counts every weight many times.

    Attributes:
        positions: How many weights each pair of an input and an output channel has.
        by_input: The dropped weights of each input channel, int64 `[I]`.
        by_output: Those of each output channel, int64 `[O]`.
    """

    def __init__(self, mask: np.ndarray):
        self.positions = mask.shape[0]
        dropped = ~mask
        self._inputs = _words(np.packbits(dropped, axis=2))
        self._outputs = _words(np.packbits(dropped, axis=1).swapaxes(1, 2))
        self.by_input, self.by_output = (_count(words) for words in (self._inputs, self._outputs))

    def of_inputs(self, classes: np.ndarray, number: int) -> np.ndarray:
        """Returns the dropped weights of each input channel by the class of their output channel, `[I, number]`."""
        return _by_class(self._inputs, self.by_input, classes, number)

    def of_outputs(self, classes: np.ndarray, number: int) -> np.ndarray:
        """Returns the dropped weights of each output channel by the class of their input channel, `[O, number]`."""
        return _by_class(self._outputs, self.by_output, classes, number)


def _words(packed: np.ndarray) -> np.ndarray:
    """Returns rows of bytes as rows of words, filled up with zeros."""
    if packed.shape[2] < 8:
        return np.ascontiguousarray(packed)
    words = np.zeros((*packed.shape[:2], -(-packed.shape[2] // 8) * 8), np.uint8)
    words[..., : packed.shape[2]] = packed
    return words.view(np.uint64)


def _count(words: np.ndarray) -> np.ndarray:
    """Returns how many bits are set in each row, over all positions."""
    return np.bitwise_count(words).sum(axis=(0, 2), dtype=np.int64)


def _by_class(words: np.ndarray, total: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    """Returns how many bits are set in each row by the class of their column, float64 `[rows, number]`."""
    counts = np.empty((len(total), number))
    for c in range(number - 1):
        counts[:, c] = _count(words & _words(np.packbits(classes == c)[None, None]))
    counts[:, -1] = total - counts[:, :-1].sum(axis=1)
    return counts


def _co_cluster(
    dropped: _Dropped, rows: np.ndarray, columns: np.ndarray, numbers: tuple[int, int], rounds: int
) -> Partition:
    """Moves each channel to the class in which its code is shortest, given the classes of the other axis, in turn."""
    inputs, outputs = numbers
    best = None
    for _ in range(rounds):
        # All counts are integers below 2^53, so that float64 adds them without rounding.
        row_dropped = dropped.of_inputs(columns, outputs)
        row_counts = dropped.positions * np.bincount(columns, minlength=outputs).astype(np.float64)
        block_dropped = _sum_rows(row_dropped, rows, inputs)
        block_counts = np.outer(np.bincount(rows, minlength=inputs), row_counts)
        partition = _partition(rows, columns, block_dropped, block_counts)
        if best is not None and partition.bits >= best.bits:
            break
        best = partition
        drop_bits, keep_bits = _lengths(block_dropped, block_counts)
        rows = _shortest(row_dropped, row_counts, drop_bits.T, keep_bits.T, _class_bits(rows, inputs))
        block_dropped = _sum_rows(row_dropped, rows, inputs)
        row_sizes = np.bincount(rows, minlength=inputs).astype(np.float64)
        drop_bits, keep_bits = _lengths(block_dropped, np.outer(row_sizes, row_counts))
        column_dropped = dropped.of_outputs(rows, inputs)
        column_counts = dropped.positions * row_sizes
        columns = _shortest(column_dropped, column_counts, drop_bits, keep_bits, _class_bits(columns, outputs))
    return best


def _shortest(
    dropped: np.ndarray, counts: np.ndarray, drop_bits: np.ndarray, keep_bits: np.ndarray, class_bits: np.ndarray
) -> np.ndarray:
    """Returns in which class the code of each channel is shortest, uint8."""
    # Not by BLAS: its threads wait for one another longer than this takes where other work keeps the processor busy.
    lengths = np.einsum("ij,jk->ik", dropped, drop_bits) + np.einsum("ij,jk->ik", counts - dropped, keep_bits)
    return np.argmin(lengths + class_bits, axis=1).astype(np.uint8)


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


def _starts(dropped: _Dropped, inputs: int, outputs: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns where attempts begin: classes with as many dropped weights, and classes of as many channels.

    Where few weights are dropped, most of them are in a few channels, which the first way sets apart.
    """
    axes = ((dropped.by_input, inputs, dropped.by_output.size), (dropped.by_output, outputs, dropped.by_input.size))
    by_mass = tuple(_by_mass(values, dropped.positions * other, number) for values, number, other in axes)
    if dropped.positions * dropped.by_input.size * dropped.by_output.size > _MANY:
        return [by_mass]
    return [by_mass, tuple(_by_rank(values, number) for values, number, _ in axes)]


def _by_rank(values: np.ndarray, classes: int) -> np.ndarray:
    """Returns classes of equal size by rank."""
    result = np.empty(len(values), np.uint8)
    result[np.argsort(values, kind="stable")] = np.arange(len(values)) * classes // len(values)
    return result


def _by_mass(values: np.ndarray, whole: int, classes: int) -> np.ndarray:
    """Returns classes of channels, of which each has about as many dropped weights; kept ones, where they are fewer.

    Args:
        values: The dropped weights of each channel.
        whole: How many weights a channel has.
        classes: How many classes.
    """
    rare = values if 2 * values.sum() <= whole * len(values) else whole - values
    order = np.argsort(rare, kind="stable")
    before = np.cumsum(rare[order]) - rare[order]
    result = np.empty(len(values), np.uint8)
    result[order] = before * classes // max(1, rare.sum())
    return result


def _sum_rows(counts: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    """Returns the sums over the rows of each class, float64 `[number, columns]`."""
    return np.stack([np.bincount(classes, column, number) for column in counts.T], axis=1)
