"""Channel classes: which channels of a layer drop weights alike.

Input and output channels of a trained mask differ in how many weights they drop. Sorted into a few classes each, every
rectangle of an input and an output class has a probability of its own, which takes fewer bits than one probability for
the layer. The classes are found by alternating between the two axes (the block model of Dhillon, Mallela and Modha,
"Information-theoretic co-clustering", KDD 2003).
"""

import dataclasses
import math

import numpy as np

# A probability is k / PROBABILITY_ONE. The two extreme values of k stand for rectangles without any choice.
PROBABILITY_ONE = 1 << 16
PROBABILITY_BITS = 16
ALL_ZEROS, ALL_ONES = 0, PROBABILITY_ONE - 1
MAX_CLASSES = 16
_CLASSES = (1, 2, 3, 4, 6, 8, 12, MAX_CLASSES)
_ROUNDS = 8
# Lengths in bits are rounded to multiples of 2^-16: sums of them are then exact in float64, whatever the order in which
# a processor adds them, and the same mask gives the same classes everywhere.
_EXACT = 65536.0


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """Classes of a layer's channels, and one probability for each rectangle of classes.

    Attributes:
        inputs: The class of each input channel, uint8 `[I]`.
        outputs: The class of each output channel, uint8 `[O]`.
        probabilities: uint16 `[A, B]`, for A input and B output classes: 65536 times the probability that a weight is
            kept; `ALL_ZEROS` and `ALL_ONES` where that is certain.
        bits: The length of the layer's code with this partition, model parameters included.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    probabilities: np.ndarray
    bits: float


def channel_view_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns `(S, I, O)`: positions, input and output channels of a kernel in C order.

    A depthwise kernel `[height, width, channels, 1]` and a convolution's `[height, width, in, out]` are read alike, a
    Dense kernel has one position, and a vector's elements are input channels.
    """
    if len(shape) == 1:
        return 1, shape[0], 1
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def probability_of(kept: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the probabilities, uint16, of rectangles of which `kept` of `counts` weights are kept."""
    kept, counts = np.asarray(kept, np.int64), np.maximum(np.asarray(counts, np.int64), 1)
    middle = np.clip((PROBABILITY_ONE * kept + counts // 2) // counts, ALL_ZEROS + 1, ALL_ONES - 1)
    return np.where(kept == 0, ALL_ZEROS, np.where(kept == counts, ALL_ONES, middle)).astype(np.uint16)


def whole_layer(shape: tuple[int, ...], kept: int) -> Partition:
    """Returns the partition into one rectangle: one probability for a layer that keeps `kept` weights."""
    positions, inputs, outputs = channel_view_shape(shape)
    dropped = np.array([[positions * inputs * outputs - kept]], np.float64)
    counts = np.array([[positions * inputs * outputs]], np.float64)
    return _partition(np.zeros(inputs, np.uint8), np.zeros(outputs, np.uint8), dropped, counts)


def find_partition(mask: np.ndarray) -> Partition:
    """Returns the partition with the shortest code that the search finds; one rectangle if nothing is shorter.

    Args:
        mask: Which weights are kept, uint8 of 0 and 1, `[S, I, O]`.
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
        rows = np.argmin(row_dropped @ drop_bits.T + (row_counts - row_dropped) @ keep_bits.T, axis=1).astype(np.uint8)
        block_dropped = _sum_rows(row_dropped, rows, inputs)
        row_sizes = np.bincount(rows, minlength=inputs).astype(np.float64)
        drop_bits, keep_bits = _lengths(block_dropped, np.outer(row_sizes, row_counts))
        column_dropped = _sum_columns(dropped.T, rows, inputs)
        rest = positions * row_sizes - column_dropped
        columns = np.argmin(column_dropped @ drop_bits + rest @ keep_bits, axis=1).astype(np.uint8)
    return best


def _partition(rows: np.ndarray, columns: np.ndarray, dropped: np.ndarray, counts: np.ndarray) -> Partition:
    kept = counts - dropped
    probabilities = probability_of(kept, counts)
    p = np.clip(probabilities, ALL_ZEROS + 1, ALL_ONES - 1) / PROBABILITY_ONE
    coded = (dropped > 0) & (kept > 0)
    bits = np.where(coded, -(dropped * _exact(np.log2(1 - p)) + kept * _exact(np.log2(p))), 0).sum()
    bits += PROBABILITY_BITS * probabilities.size
    for classes, assigned in zip(probabilities.shape, (rows, columns), strict=True):
        bits += math.log2(classes) * len(assigned)
    return Partition(rows, columns, probabilities, float(bits))


def _lengths(dropped: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bits of a dropped and of a kept weight in each rectangle, of which none is impossible."""
    p = (dropped + 0.05) / (counts + 0.1)
    return _exact(-np.log2(p)), _exact(-np.log2(1 - p))


def _exact(bits: np.ndarray) -> np.ndarray:
    return np.round(bits * _EXACT) / _EXACT


def _by_rank(values: np.ndarray, classes: int) -> np.ndarray:
    """Returns classes of equal size by rank."""
    result = np.empty(len(values), np.uint8)
    result[np.argsort(values, kind="stable")] = np.arange(len(values)) * classes // len(values)
    return result


def _sum_columns(counts: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    """Returns the sums over the columns of each class, float64 `[rows, number]`."""
    members = np.eye(number, dtype=np.float32)[classes]
    # float32 holds these sums exactly (a row has fewer than 2^24 weights); blocks keep its copy of `counts` small.
    step = max(1, (1 << 22) // max(1, counts.shape[1]))
    blocks = [counts[i : i + step].astype(np.float32) @ members for i in range(0, len(counts), step)]
    return np.concatenate(blocks).astype(np.float64)


def _sum_rows(counts: np.ndarray, classes: np.ndarray, number: int) -> np.ndarray:
    return np.eye(number)[classes].T @ counts
