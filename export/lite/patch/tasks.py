"""From a task's pack to what it changes in a base."""

import json

import numpy as np

from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.bits import pack_bits

from ...edge.piggyback_edge import DIGEST, TERNARY, Task
from ...edge.piggyback_edge import FILTER as FILTER_KIND
from ...shared.errors import ExportError
from ..kinds import answer_of
from ..weights import Weights, own_weights
from .constants import FILTER, Constant
from .elements import describe_constant, float16_tolerance
from .patchable import Graph, Patchable, Slot

# By how much more than the base's a task's batch norm may multiply a channel; beyond, the base's is as good as zero.
_LARGEST_RATIO = 1e6


def make_task(base: Patchable, pack: TaskPack) -> Task:
    """Returns what a task changes in a base.

    Raises:
        ExportError: If its batch norm cannot be put into the base's filters, or no graph of the base answers it.
        ElementError: If a number is too large for the type of its constant.
    """
    number = base.graph_of(pack)
    graph = base.graphs[number]
    network = graph.network
    weights = own_weights(network, pack, masked=False)
    changed = {
        path
        for path, norm in network.norms.items()
        if any(not np.array_equal(weights[f"{path}/{name}"], network.weights[f"{path}/{name}"]) for name in norm.names)
    }
    ternary = pack.mask_kind == "ternary"
    masks, ratios, new_bytes = {}, {}, {}
    for place, slot in enumerate(base.slots):
        constant = slot.constants.get(number)
        if constant is None:
            continue
        if slot.entry.kind == FILTER_KIND and constant.kernel in pack.masks:
            masks[place] = pack_bits(pack.mask(constant.kernel).transpose(constant.order), pack.mask_kind)
        if constant.of_head:
            new_bytes[place] = _head_bytes(graph, slot, constant, weights, len(pack.class_names))
        elif constant.norm in changed:
            if slot.entry.kind != FILTER_KIND:
                new_bytes[place] = _part(graph, slot, constant, weights).tobytes()
            elif (ratio := _ratios(graph, slot, constant, weights, pack)) is not None:
                ratios[place] = ratio
    inside = bool(network.kind.room)
    return Task(
        name=pack.task,
        labels=tuple(pack.class_names),
        augment=pack.eval_augment,
        base_name=pack.base_name,
        preprocessing=pack.preprocessing,
        flags=TERNARY if ternary else 0,
        masks=masks,
        ratios=ratios,
        new_bytes=new_bytes,
        kernel=None if inside else pack.head["kernel"],
        bias=None if inside else pack.head["bias"],
        nbytes=0,
        digest=bytes(DIGEST),
        manifest=base.manifest,
        graph=number,
        answer=answer_of(pack.problem),
        problem=pack.problem,
        head_spec=json.dumps(pack.head_spec.to_json(), sort_keys=True),
    )


def _part(graph: Graph, slot: Slot, constant: Constant, weights: Weights) -> np.ndarray:
    """Returns what belongs into an entry that is no filter of the base."""
    if constant.role == FILTER and not constant.of_head:
        return _scales_of(graph, slot, constant, weights)
    return getattr(graph.encoder.encode(constant, weights), slot.part)


def _scales_of(graph: Graph, slot: Slot, constant: Constant, weights: Weights) -> np.ndarray:
    """Returns the scales of a quantised filter, which keeps its numbers."""
    if slot.entry.size != constant.channels(graph.network)[0]:
        raise ExportError(
            f"{describe_constant(constant)} has one scale for all channels in this quantisation, so that a "
            "task cannot have its own batch norm; export with --quantize=none or float16."
        )
    return graph.encoder.filter_scales(constant, constant.value(graph.network, weights))


def _head_bytes(graph: Graph, slot: Slot, constant: Constant, weights: Weights, classes: int) -> bytes:
    """Returns what belongs into an entry of the head: of a dense one's numbers only those of the task's classes."""
    values = _part(graph, slot, constant, weights)
    if slot.part == "data" and graph.network.kind.head.is_dense:
        values = values[: values.size // graph.network.kind.room * classes]
    return values.tobytes()


def _ratios(graph: Graph, slot: Slot, constant: Constant, weights: Weights, pack: TaskPack) -> np.ndarray | None:
    """Returns by what a task's batch norm multiplies the channels of a filter; None if by nothing."""
    norm = graph.network.norms[constant.norm]
    own, old = norm.factor(weights), norm.factor(graph.network.weights)
    lost = (np.abs(old) * _LARGEST_RATIO <= np.abs(own)) & (own != old)
    ratios = np.where(own == old, np.float32(1), own / np.where(old == 0, np.float32(1), old)).astype(np.float32)
    if slot.entry.dtype == np.float16:
        lost |= _lost_in_float16(graph, slot, constant, ratios, weights)
    if lost.any():
        channel = int(np.flatnonzero(lost)[0])
        raise ExportError(
            f"Task {pack.task!r} has its own batch norm, and gamma of channel {channel} of {constant.norm!r} is so "
            f"near zero in the base ({old[channel]:.3g} over the deviation) that the filters, into which it is folded, "
            f"do not hold in {slot.entry.dtype} what the task needs; use --design=switch or --design=input."
        )
    if slot.entry.dtype == np.int8:
        signs = np.where(ratios < 0, np.float32(-1), np.float32(1))
        return signs if (signs < 0).any() else None
    # Says so if a number is too large for the type.
    graph.encoder.encode(constant, weights)
    return ratios


def _lost_in_float16(graph: Graph, slot: Slot, constant: Constant, ratios: np.ndarray, weights: Weights) -> np.ndarray:
    """Returns for each channel whether the base's numbers times its ratio are far from a task's, bool `[channels]`."""
    shape = (-1, slot.entry.channels, slot.entry.inner)
    held = graph.file.floats(graph.file.tensors[constant.tensor]).reshape(shape) * ratios[:, None]
    distance = np.abs(held - constant.value(graph.network, weights).reshape(shape))
    allowed = float16_tolerance(constant, graph.network, weights).reshape(shape)
    return (distance > allowed).any(axis=(0, 2))
