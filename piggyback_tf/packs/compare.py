"""How much the masks of two tasks have in common, counted on the packed bits and without TensorFlow."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from piggyback_tf.foreign_text import short_hash
from piggyback_tf.packs.bits import MaskBits, count_ones
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.pack import TaskPack


@dataclasses.dataclass(frozen=True)
class MaskOverlap:
    """What two masks, a and b, do to the same weights.

    Attributes:
        both: Weights that both keep.
        only_a: Weights that only a keeps.
        only_b: Weights that only b keeps.
        neither: Weights that both drop.
        opposite: Those of `both` that one of them negates and the other does not; 0 if both masks are binary.
    """

    both: int
    only_a: int
    only_b: int
    neither: int
    opposite: int = 0

    @classmethod
    def total(cls, overlaps: Iterable["MaskOverlap"]) -> "MaskOverlap":
        """Returns the sums over several layers."""
        counts = [dataclasses.astuple(overlap) for overlap in overlaps]
        return cls(*map(sum, zip(*counts, strict=True))) if counts else cls(0, 0, 0, 0)

    @property
    def weights(self) -> int:
        """The number of weights."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def agreement(self) -> float:
        """The fraction of the weights to which both masks do the same; 1 if there are none."""
        return (self.both + self.neither - self.opposite) / self.weights if self.weights else 1.0

    @property
    def zeros_jaccard(self) -> float:
        """Weights that both drop, as a fraction of those that at least one drops; 1 if none is dropped."""
        dropped = self.only_a + self.only_b + self.neither
        return self.neither / dropped if dropped else 1.0


def compare_masks(a: TaskPack, b: TaskPack) -> dict[str, MaskOverlap]:
    """Compares the masks of two packs.

    Args:
        a: A pack.
        b: Another one for the same base.

    Returns:
        The overlap by the weight's canonical path, for each weight that has a mask in `a`, then for those that have
        one in `b` only. A task without a mask for a weight keeps all of it.

    Raises:
        PackError: If the packs are for different bases or disagree about the shape of a weight.
    """
    if a.base_hash != b.base_hash:
        raise PackError(
            f"Task {a.task!r} is for the base {a.base_name!r} with hash {short_hash(a.base_hash)}... and task "
            f"{b.task!r} for {b.base_name!r} with hash {short_hash(b.base_hash)}...; masks can be compared on one "
            "base only."
        )
    return compare_bits(a.masks, b.masks)


def compare_bits(a: Mapping[str, MaskBits], b: Mapping[str, MaskBits]) -> dict[str, MaskOverlap]:
    """Does what `compare_masks` does with packed masks by path; see there."""
    return {path: _overlap(path, a.get(path), b.get(path)) for path in {**a, **b}}


def _overlap(path: str, a: MaskBits | None, b: MaskBits | None) -> MaskOverlap:
    if a is None or b is None:
        mask = b if a is None else a
        kept = count_ones(mask.packed[0])
        rest = mask.size - kept
        negated = count_ones(mask.packed[1]) if len(mask.packed) > 1 else 0
        only_a, only_b = (rest, 0) if a is None else (0, rest)
        return MaskOverlap(kept, only_a, only_b, neither=0, opposite=negated)
    if tuple(a.shape) != tuple(b.shape):
        raise PackError(f"The masks of {path!r} have different shapes: {list(a.shape)} and {list(b.shape)}.")
    kept = a.packed[0] & b.packed[0]
    both, kept_a, kept_b = count_ones(kept), count_ones(a.packed[0]), count_ones(b.packed[0])
    opposite = count_ones(kept & (_negated(a) ^ _negated(b)))
    return MaskOverlap(both, kept_a - both, kept_b - both, a.size - kept_a - kept_b + both, opposite)


def _negated(mask: MaskBits) -> np.ndarray:
    """Returns the plane of negated weights; a binary mask has none."""
    return mask.packed[1] if len(mask.packed) > 1 else np.zeros_like(mask.packed[0])
