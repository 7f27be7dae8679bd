"""By how much scales of int8 filters have to be larger than their numbers need, so that their biases fit into int32.

A bias is in multiples of its input's scale times its filter's. In a channel whose filter is nearly zero these are so
small that the bias does not fit. With a larger scale the numbers of the filter are rounded to multiples of it, which
are far below what can be seen beside the bias. Under batch norm or scales of a task's own a filter keeps its numbers,
so its scales are larger by the same factor under the base and all tasks. It is a power of two, which is exact and can
be read again from a base. Where it cannot be large enough for a task, the task's filter is composed, with scales of
its own.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from ..weights import Weights
from .constants import FILTER, Constant
from .elements import BIAS_ROUNDING, Encoder, Widening, filter_inputs, without_tensor

# By how much an int8 input can differ from its zero point.
_REACH = 255


def needed_widening(encoders: Sequence[Encoder], tasks: Sequence[Iterable[tuple[Weights, frozenset[str]]]]) -> Widening:
    """Returns by what the scales of filters have to be multiplied for the base and some tasks.

    What a task needs is left out where the base's own filter would lose by it what can be seen.

    Args:
        encoders: Those of the graphs of an int8 base, without widening.
        tasks: For each graph its tasks: all weights, without masks, and the kernels whose filters a task composes.
    """
    found: dict[Constant, np.ndarray] = {}
    for encoder, own in zip(encoders, tasks, strict=True):
        filters = {constant: _factors(encoder, constant, encoder.network.weights) for constant in _kept(encoder)}
        for constant, factors in filters.items():
            _widen(found, constant, factors)
        for weights, composed in own:
            for constant in filters:
                if constant.kernel not in composed:
                    factors = _factors(encoder, constant, weights)
                    scales = factors * encoder.fitting_scales(constant, encoder.network.weights)
                    _widen(found, constant, np.where(_is_visible(encoder, constant, scales), 1, factors))
    return found


def widening_of_file(encoder: Encoder) -> Widening:
    """Returns by what the scales of filters in a base are larger than their numbers need.

    Args:
        encoder: Of a graph of the base, whose file holds the base's own weights, without widening.
    """
    found: dict[Constant, np.ndarray] = {}
    for constant in _kept(encoder):
        ratio = encoder.file_scales(constant) / encoder.fitting_scales(constant, encoder.network.weights)
        _widen(found, constant, np.exp2(np.rint(np.log2(np.maximum(ratio, 1)))))
    return found


def unfitting_kernels(encoder: Encoder, weights: Weights) -> frozenset[str]:
    """Returns the paths of kernels whose filters need larger scales for a task, and can have some of their own.

    Args:
        encoder: Of a graph of the base.
        weights: All weights of the task, without masks.
    """
    found: set[str] = set()
    for constant in _kept(encoder):
        if constant.kernel and (constant.norm is not None or constant.kernel in encoder.network.rescaled):
            scales = encoder.filter_scales(constant, weights)
            if (encoder.needed_scales(constant, weights) > scales * (1 + BIAS_ROUNDING)).any():
                found.add(constant.kernel)
    return frozenset(found)


def lost_by_widening(encoder: Encoder, constant: Constant, ratios: np.ndarray) -> np.ndarray:
    """Returns for each channel whether a task's filter loses by the larger scale what can be seen, bool `[channels]`.

    Args:
        encoder: Of a graph of the base, whose file holds the base's own weights.
        constant: The filter.
        ratios: By what the task multiplies the channels of the base's filter.
    """
    widening = encoder.widening.get(without_tensor(constant))
    if widening is None:
        return np.zeros(ratios.shape, bool)
    return (widening > 1) & _is_visible(encoder, constant, encoder.file_scales(constant) * np.abs(ratios))


def _is_visible(encoder: Encoder, constant: Constant, scales: np.ndarray) -> np.ndarray:
    """Returns whether all roundings of a channel together can come to more than a step of the operator's output."""
    channels, _ = constant.channels(encoder.network)
    count = constant.value(encoder.network, encoder.network.weights).size // channels
    visible = np.zeros(scales.shape, bool)
    for operator in encoder.file.operators:
        data, kernel, _ = filter_inputs(operator)
        if kernel == constant.tensor:
            taken, given = (encoder.file.steps(encoder.file.tensors[index]) for index in (data, operator.outputs[0]))
            visible |= scales / 2 * count * _REACH * taken > given
    return visible


def _factors(encoder: Encoder, constant: Constant, weights: Weights) -> np.ndarray:
    """Returns the powers of two that scales have to be multiplied by for a bias to fit, in the shape of the scales."""
    ratio = encoder.needed_scales(constant, weights) / encoder.fitting_scales(constant, weights)
    return np.exp2(np.ceil(np.log2(np.maximum(ratio, 1))))


def _kept(encoder: Encoder) -> list[Constant]:
    """Returns the int8 filters that tasks do not bring, but mask and scale."""
    filters = [each for each in encoder.constants.values() if each.role == FILTER and not each.of_head]
    return [each for each in filters if encoder.file_scales(each).size]


def _widen(found: dict[Constant, np.ndarray], constant: Constant, factors: np.ndarray) -> None:
    if (factors > 1).any():
        key = without_tensor(constant)
        found[key] = np.maximum(found.get(key, np.float32(1)), factors.astype(np.float32))
