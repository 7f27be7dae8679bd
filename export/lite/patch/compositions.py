"""What a device makes a filter of that a task changes otherwise than by a mask and scales of channels.

The device has the base's filter F: the kernel W times the factors of batch norm, rounded to the filter's type. The
task's filter is `W' f`, where f are its own factors and `W' = s (k0 W + k1 + (k2 + k3 W) M) + A B`. So it is made of F,
of ratios `s f / f0` for what is multiplied, of offsets `s f` for what is added, and of A and B, of which one holds f.
"""

import math
from typing import Any

import numpy as np

from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.parts import AFFINE, DOWN, UP, affine_numbers, part_name

from ...edge.piggyback_edge import Composition
from ...shared.errors import ExportError
from ..weights import Kernel, Weights, channel_scales
from .constants import Constant
from .patchable import Graph, Slot

# By how much of a step a number of integers differs from its weight.
_HALF_STEP = 0.501
# What multiplies and is added where the mask is 0, 1 and -1, if the mask is not affine.
_PLAIN = np.array([0, 1, -1], np.float32), np.zeros(3, np.float32)


def composition_of(
    graph: Graph, slot: Slot, constant: Constant, weights: Weights, pack: TaskPack, ratios: np.ndarray | None
) -> Composition:
    """Returns what a filter of a task is made of.

    Args:
        graph: The graph.
        slot: The entry of the filter.
        constant: The filter.
        weights: All weights of the task.
        pack: The task.
        ratios: By what the task's factors and scales differ from the base's factors; None if by nothing.

    Raises:
        ExportError: If the filter has no place for scales of its own, or A B cannot hold the factors.
    """
    assert constant.kernel is not None, "a filter is made of a kernel"
    network, quantised = graph.network, slot.entry.dtype == np.int8
    if quantised and constant.norm is None and constant.kernel not in network.rescaled:
        raise ExportError(
            f"Task {pack.task!r} changes the kernel {constant.kernel!r}, whose filter on this base keeps its scales. "
            "Export a base with this task among others, without --base."
        )
    kernel = network.kernels[constant.kernel]
    scales = np.zeros(0, np.float32)
    if quantised:
        scales = graph.encoder.filter_scales(constant, weights)
    own = np.full(kernel.channels, constant.extra, np.float32)
    if constant.norm is not None:
        own = own * network.norms[constant.norm].factor(weights)
    affine = pack.parts.get(part_name(AFFINE, constant.kernel))
    factors, added = _PLAIN if affine is None else affine_numbers(affine)
    channels = channel_scales(network, pack, constant.kernel)
    offsets = own if channels is None else own * channels
    down, up = _folded(kernel, pack, own)
    columns = kernel.shape[-1]
    place = constant.order.index(len(kernel.shape) - 1)
    inner = math.prod(kernel.shape[axis] for axis in constant.order[place + 1 :])
    # A device's own file is checked without looking at None.
    optional: dict[str, Any] = {
        "ratios": ratios,
        "offsets": offsets if added.any() and (offsets != 1).any() else None,
        "down": None if down is None else _in_order(down, constant.order),
        "up": None if up is None else up.reshape(-1, columns),
    }
    return Composition(factors=factors, added=added, scales=scales, inner=inner, **optional)


def composition_error(made_of: Composition, steps: np.ndarray, inner: int, size: int) -> np.ndarray:
    """Returns by how much a filter may differ since the base's is rounded, float64 `[n]` or `[1]`.

    Args:
        made_of: What it is made of.
        steps: By how much numbers of the base's filter differ at least, `[n]` or `[1]`.
        inner: How many elements of a channel lie side by side.
        size: How many elements it has, n.
    """
    errors = _HALF_STEP * float(np.abs(made_of.factors).max()) * steps
    if made_of.ratios is None:
        return errors
    ratios = np.repeat(np.abs(made_of.ratios.astype(np.float64)), inner)
    return errors * np.tile(ratios, size // ratios.size)


def _folded(kernel: Kernel, pack: TaskPack, own: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Returns A and B of a kernel, one of them multiplied by the factors of its channels."""
    down, up = (pack.parts.get(part_name(role, kernel.path)) for role in (DOWN, UP))
    if down is None or up is None or (own == 1).all():
        return down, up
    last = len(kernel.shape) - 1
    if kernel.outputs == (last,):
        return down, up * own
    if last not in kernel.outputs or kernel.shape[last] == 1:
        # The last side of A are the ranks.
        return down * kernel.channel_view(own), up
    raise ExportError(
        f"Task {pack.task!r} adds a product of matrices to {kernel.path!r}, whose channels are numbered by two sides, "
        "and batch norm is folded into them; use --design=plain."
    )


def _in_order(down: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Returns A in the order of a filter's elements, float32 `[rows, rank]`."""
    last = down.ndim - 1
    return down.transpose(*(axis for axis in order if axis != last), last).reshape(-1, down.shape[last])
