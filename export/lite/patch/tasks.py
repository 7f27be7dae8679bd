"""From a task's pack to what it changes in a base."""

import numpy as np

from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.bits import pack_bits

from ...edge.piggyback_edge import DIGEST, TERNARY, Task
from ...edge.piggyback_edge import FILTER as FILTER_KIND
from ...shared.errors import ExportError
from ..weights import HEAD_KERNEL, Network, Weights, own_weights
from .constants import FILTER, HEAD_BIAS_ROLE, HEAD_KERNEL_ROLE
from .elements import describe_constant, float16_tolerance
from .patchable import Patchable, Slot

# By how much more than the base's a task's batch norm may multiply a channel; beyond, the base's is as good as zero.
_LARGEST_RATIO = 1e6
_HEAD_ROLES = (HEAD_KERNEL_ROLE, HEAD_BIAS_ROLE)


def check_room(pack: TaskPack, network: Network) -> None:
    """Checks that the head of a task fits into a base that ends in a head.

    Raises:
        ExportError: If the task has too many classes.
    """
    if HEAD_KERNEL in network.weights:
        room = network.weights[HEAD_KERNEL].shape[1]
        if len(pack.class_names) > room:
            raise ExportError(f"Task {pack.task!r} has {len(pack.class_names)} classes; the base has room for {room}.")


def make_task(base: Patchable, pack: TaskPack) -> Task:
    """Returns what a task changes in a base.

    Raises:
        ExportError: If its batch norm cannot be put into the base's filters.
        ElementError: If a number is too large for the type of its constant.
    """
    network = base.network
    weights = own_weights(network, pack, masked=False)
    changed = {
        path
        for path, norm in network.norms.items()
        if any(not np.array_equal(weights[f"{path}/{name}"], network.weights[f"{path}/{name}"]) for name in norm.names)
    }
    ternary = pack.mask_kind == "ternary"
    masks, ratios, new_bytes = {}, {}, {}
    for place, slot in enumerate(base.slots):
        constant = slot.constant
        if slot.entry.kind == FILTER_KIND and constant.kernel in pack.masks:
            masks[place] = pack_bits(pack.mask(constant.kernel).transpose(constant.order), pack.mask_kind)
        if constant.role in _HEAD_ROLES:
            new_bytes[place] = _head_bytes(base, slot, weights, len(pack.class_names))
        elif constant.norm in changed:
            if slot.entry.kind != FILTER_KIND:
                new_bytes[place] = _part(base, slot, weights).tobytes()
            elif (ratio := _ratios(base, slot, weights, pack)) is not None:
                ratios[place] = ratio
    inside = HEAD_KERNEL in network.weights
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
    )


def _part(base: Patchable, slot: Slot, weights: Weights) -> np.ndarray:
    """Returns what belongs into an entry that is no filter."""
    if slot.constant.role == FILTER:
        return _scales_of(base, slot, weights)
    return getattr(base.encoder.encode(slot.constant, weights), slot.part)


def _scales_of(base: Patchable, slot: Slot, weights: Weights) -> np.ndarray:
    """Returns the scales of a quantised filter, which keeps its numbers."""
    if slot.entry.size != slot.constant.channels(base.network)[0]:
        raise ExportError(
            f"{describe_constant(slot.constant)} has one scale for all channels in this quantisation, so that a "
            "task cannot have its own batch norm; export with --quantize=none or float16."
        )
    return base.encoder.filter_scales(slot.constant, slot.constant.value(base.network, weights))


def _head_bytes(base: Patchable, slot: Slot, weights: Weights, classes: int) -> bytes:
    """Returns what belongs into an entry of the head: of its numbers only those of the task's classes."""
    values = _part(base, slot, weights)
    if slot.part == "data":
        values = values[: values.size // base.manifest.max_classes * classes]
    return values.tobytes()


def _ratios(base: Patchable, slot: Slot, weights: Weights, pack: TaskPack) -> np.ndarray | None:
    """Returns by what a task's batch norm multiplies the channels of a filter; None if by nothing."""
    constant = slot.constant
    norm = base.network.norms[constant.norm]
    own, old = norm.factor(weights), norm.factor(base.network.weights)
    lost = (np.abs(old) * _LARGEST_RATIO <= np.abs(own)) & (own != old)
    ratios = np.where(own == old, np.float32(1), own / np.where(old == 0, np.float32(1), old)).astype(np.float32)
    if slot.entry.dtype == np.float16:
        lost |= _lost_in_float16(base, slot, ratios, weights)
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
    base.encoder.encode(constant, weights)
    return ratios


def _lost_in_float16(base: Patchable, slot: Slot, ratios: np.ndarray, weights: Weights) -> np.ndarray:
    """Returns for each channel whether the base's numbers times its ratio are far from a task's, bool `[channels]`."""
    shape = (-1, slot.entry.channels, slot.entry.inner)
    held = base.file.floats(base.file.tensors[slot.constant.tensor]).reshape(shape) * ratios[:, None]
    distance = np.abs(held - slot.constant.value(base.network, weights).reshape(shape))
    allowed = float16_tolerance(slot.constant, base.network, weights).reshape(shape)
    return (distance > allowed).any(axis=(0, 2))
