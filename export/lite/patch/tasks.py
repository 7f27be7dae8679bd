"""From a task's pack to what it changes in a base."""

import dataclasses
import json
from collections.abc import Set

import numpy as np

from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.bits import pack_bits
from piggyback_tf.packs.parts import MIXED, VECTOR, changed_weights

from ...edge.piggyback_edge import DIGEST, TERNARY, Task
from ...edge.piggyback_edge import FILTER as FILTER_KIND
from ...shared.errors import ExportError
from ..kinds import answer_of
from ..weights import Weights, channel_scales, own_weights
from .compositions import composition_of
from .constants import FILTER, Constant
from .elements import BiasError, describe_constant, float16_tolerance
from .patchable import Graph, Patchable, Slot
from .widening import lost_by_widening, unfitting_kernels

# By how much more than the base's a task's batch norm may multiply a channel; beyond, the base's is as good as zero.
_LARGEST_RATIO = 1e6


def make_task(base: Patchable, pack: TaskPack) -> Task:
    """Returns what a task changes in a base.

    Raises:
        ExportError: If what it changes cannot be put into the base's constants, or no graph of the base answers it.
        ElementError: If a number is too large for the type of its constant.
    """
    try:
        return _make_task(base, pack)
    except BiasError as error:
        raise ExportError(
            f"Task {pack.task!r} does not fit this base. {error} Use --design=plain or another quantisation; if the "
            "base is in the field, a new one that is exported with this task among others can hold more."
        ) from error


def composed_kernels(pack: TaskPack) -> frozenset[str]:
    """Returns the paths of the kernels of a task whose filters a device makes by more than a mask and scales."""
    return frozenset(path for path, own in changed_weights(pack.parts).items() if MIXED & own)


def _make_task(base: Patchable, pack: TaskPack) -> Task:
    number = base.graph_of(pack)
    network = base.graphs[number].network
    weights = own_weights(network, pack, masked=False)
    composed = composed_kernels(pack) | unfitting_kernels(base.graphs[number].encoder, weights)
    graph = dataclasses.replace(base.graphs[number], composed=composed)
    changed = {
        path
        for path, norm in network.norms.items()
        if any(not np.array_equal(weights[f"{path}/{name}"], network.weights[f"{path}/{name}"]) for name in norm.names)
    }
    roles = changed_weights(pack.parts)
    vectors = {path for path, own in roles.items() if VECTOR in own}
    _check_vectors(graph, pack, vectors)
    ternary = pack.mask_kind == "ternary"
    masks, ratios, new_bytes, compositions = {}, {}, {}, {}
    for place, slot in enumerate(base.slots):
        constant = slot.constants.get(number)
        if constant is None:
            continue
        if slot.entry.kind == FILTER_KIND and constant.kernel in pack.masks:
            masks[place] = pack_bits(pack.mask(constant.kernel).transpose(constant.order), pack.mask_kind)
        if constant.of_head:
            new_bytes[place] = _head_bytes(graph, slot, constant, weights, len(pack.class_names))
        elif slot.entry.kind == FILTER_KIND:
            ratio, own = None, roles.get(constant.kernel, frozenset())
            if constant.norm in changed or own:
                ratio = _ratios(graph, slot, constant, weights, pack)
            if constant.kernel in graph.composed:
                compositions[place] = composition_of(graph, slot, constant, weights, pack, ratio)
            elif (kept := _signs(ratio) if slot.entry.dtype == np.int8 else ratio) is not None:
                ratios[place] = kept
        elif (
            constant.norm in changed or constant.bias in vectors or (roles and _differs(graph, slot, constant, weights))
        ):
            new_bytes[place] = _part(graph, slot, constant, weights).tobytes()
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
        compositions=compositions,
    )


def _check_vectors(graph: Graph, pack: TaskPack, vectors: Set[str]) -> None:
    """Raises an `ExportError` if the base has no constants of its own for the vectors that a task replaces."""
    there = {constant.bias for constant in graph.constants.values()}
    if missing := sorted((vectors & graph.network.used) - there):
        raise ExportError(
            f"Task {pack.task!r} has its own {missing[0]!r}, which is the same for all tasks on this base. Export a "
            "base with this task among others, without --base."
        )


def _differs(graph: Graph, slot: Slot, constant: Constant, weights: Weights) -> bool:
    """Returns whether a constant is another one than the base's, such as a bias whose filter has other scales."""
    old = _part(dataclasses.replace(graph, composed=frozenset()), slot, constant, graph.network.weights)
    return _part(graph, slot, constant, weights).tobytes() != old.tobytes()


def _part(graph: Graph, slot: Slot, constant: Constant, weights: Weights) -> np.ndarray:
    """Returns what belongs into an entry that is no filter of the base."""
    if constant.role == FILTER and not constant.of_head:
        return graph.encoder.filter_scales(constant, weights)
    return getattr(graph.encoder.encode(constant, weights), slot.part)


def _head_bytes(graph: Graph, slot: Slot, constant: Constant, weights: Weights, classes: int) -> bytes:
    """Returns what belongs into an entry of the head: of a dense one's numbers only those of the task's classes."""
    values = _part(graph, slot, constant, weights)
    if slot.part == "data" and graph.network.kind.head.is_dense:
        values = values[: values.size // graph.network.kind.room * classes]
    return values.tobytes()


def _ratios(graph: Graph, slot: Slot, constant: Constant, weights: Weights, pack: TaskPack) -> np.ndarray | None:
    """Returns by what a task's batch norm and scales multiply the channels of a filter; None if by nothing."""
    assert constant.kernel is not None, "a filter is made of a kernel"
    network, mixed = graph.network, constant.kernel in graph.composed
    own = old = np.ones(network.kernels[constant.kernel].channels, np.float32)
    if constant.norm is not None:
        own, old = (network.norms[constant.norm].factor(each) for each in (weights, network.weights))
    scales = channel_scales(network, pack, constant.kernel)
    own = own if scales is None else own * scales
    if scales is None and (own == old).all() and mixed:
        return None
    lost = (np.abs(old) * _LARGEST_RATIO <= np.abs(own)) & (own != old)
    ratios = np.where(own == old, np.float32(1), own / np.where(old == 0, np.float32(1), old)).astype(np.float32)
    if slot.entry.dtype == np.float16 and not mixed:
        lost |= _lost_in_float16(graph, slot, constant, ratios, weights)
    if slot.entry.dtype == np.int8:
        lost |= lost_by_widening(graph.encoder, constant, ratios)
    if lost.any():
        channel = int(np.flatnonzero(lost)[0])
        whose = f"gamma of channel {channel} of {constant.norm!r}" if constant.norm else f"channel {channel}"
        raise ExportError(
            f"Task {pack.task!r} has its own batch norm or scales, and {whose} is so "
            f"near zero in the base ({old[channel]:.3g} over the deviation) that the filters, into which it is folded, "
            f"do not hold in {slot.entry.dtype} what the task needs; use --design=plain, switch or input."
        )
    if slot.entry.dtype == np.int8 and not mixed:
        _check_scales(graph, slot, constant, pack)
    elif slot.entry.dtype != np.int8:
        # Says so if a number is too large for the type.
        graph.encoder.encode(constant, weights)
    return ratios


def _check_scales(graph: Graph, slot: Slot, constant: Constant, pack: TaskPack) -> None:
    """Raises an `ExportError` if a quantised filter, which keeps its numbers, cannot have scales of a task's own."""
    if slot.entry.scale_count != slot.entry.channels:
        raise ExportError(
            f"{describe_constant(constant)} has one scale for all channels in this quantisation, so that a "
            "task cannot have its own batch norm or scales; export with --quantize=none or float16."
        )
    if constant.norm is None and constant.kernel not in graph.network.rescaled:
        raise ExportError(
            f"Task {pack.task!r} scales the kernel {constant.kernel!r}, whose filter on this base keeps its scales. "
            "Export a base with this task among others, without --base."
        )


def _signs(ratios: np.ndarray | None) -> np.ndarray | None:
    """Returns what is left of ratios where scales hold their sizes; None if all is left as it is."""
    return None if ratios is None or not (ratios < 0).any() else np.where(ratios < 0, np.float32(-1), np.float32(1))


def _lost_in_float16(graph: Graph, slot: Slot, constant: Constant, ratios: np.ndarray, weights: Weights) -> np.ndarray:
    """Returns for each channel whether the base's numbers times its ratio are far from a task's, bool `[channels]`."""
    shape = (-1, slot.entry.channels, slot.entry.inner)
    held = graph.file.floats(graph.file.tensors[constant.tensor]).reshape(shape) * ratios[:, None]
    distance = np.abs(held - constant.value(graph.network, weights).reshape(shape))
    allowed = float16_tolerance(constant, graph.network, weights).reshape(shape)
    return (distance > allowed).any(axis=(0, 2))
