"""What a task hands over to a model: masks as bytes that LiteRT's own operators can read, batch norm, and a head."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.packs import PackError, TaskPack

if TYPE_CHECKING:
    import tensorflow as tf

# What the codes of one or two bits stand for.
_VALUES = {1: (0, 1), 2: (0, 1, -1, 0)}


@dataclasses.dataclass(frozen=True)
class MaskCode:
    """How the numbers of a mask are written, the first one in the lowest bits of a byte.

    Attributes:
        bits: 1 if all masks are binary; 2 if one is ternary: 0 drops a weight, 1 keeps it, 2 negates it.
    """

    bits: int

    def length(self, count: int) -> int:
        """Returns how many bytes so many numbers take."""
        return -(-count * self.bits // 8)

    def write(self, mask: np.ndarray) -> np.ndarray:
        """Returns the bytes of a mask, uint8.

        Args:
            mask: int8 of any shape; -1, 0 and 1, or 0 and 1 if the code is of one bit.
        """
        codes = np.where(mask < 0, 2, mask).astype(np.uint8).reshape(-1)
        bits = np.stack([codes >> place & 1 for place in range(self.bits)], axis=1)
        return np.packbits(bits.reshape(-1), bitorder="little")

    def table(self) -> np.ndarray:
        """Returns the numbers that each byte stands for, float32 `[256, 8 / bits]`."""
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        codes = bits.reshape(256, -1, self.bits) @ (1 << np.arange(self.bits))
        return np.array(_VALUES[self.bits], np.float32)[codes]

    def expand(self, mask: "tf.Tensor", shape: tuple[int, ...]) -> "tf.Tensor":
        """Returns a mask as float32 of a shape, by operators of LiteRT.

        Args:
            mask: Bytes, uint8; what the last one has too many is left out.
            shape: The shape.
        """
        import tensorflow as tf

        # A gather takes no bytes as indices. Its table holds integers until the shape is right: LiteRT reshapes them in
        # place, and XNNPACK copies floats.
        numbers = tf.reshape(tf.gather(self.table().view(np.int32), tf.cast(mask, tf.int16)), [-1])
        count = math.prod(shape)
        if count * self.bits % 8:
            numbers = numbers[:count]
        return tf.bitcast(tf.reshape(numbers, shape), tf.float32)


@dataclasses.dataclass(frozen=True)
class InputFormat:
    """What a task hands over to a model, and in which order.

    Attributes:
        code: How masks are written.
        filters: The masked kernels by path, each with its shape on the device.
        norms: The batch norm layers by path, each with its number of channels; none if all tasks have the base's.
        classes: For how many classes the head is.
        features: How many features it takes.
        image_size: Side of the images in pixels.
        base_hash: The hash of the base.
        base_structure: The digest of what the base computes; None in models of before that was recorded.
    """

    code: MaskCode
    filters: Mapping[str, tuple[int, ...]]
    norms: Mapping[str, int]
    classes: int
    features: int
    image_size: int
    base_hash: str
    base_structure: str | None

    @property
    def mask_bytes(self) -> int:
        """Bytes of a mask; every kernel begins with a byte of its own."""
        return sum(self.code.length(int(np.prod(shape))) for shape in self.filters.values())

    @property
    def norm_length(self) -> int:
        """Numbers in `norm`: for each layer its factors, then its offsets."""
        return 2 * sum(self.norms.values())

    def to_json(self) -> dict[str, Any]:
        """Returns the format as JSON values."""
        return {
            "bits": self.code.bits,
            "filters": [[path, list(shape)] for path, shape in self.filters.items()],
            "norms": [[path, channels] for path, channels in self.norms.items()],
            "classes": self.classes,
            "features": self.features,
            "image_size": self.image_size,
            "base_hash": self.base_hash,
        } | ({} if self.base_structure is None else {"base_structure": self.base_structure})

    def digest(self) -> str:
        """Returns a SHA-256 that is the same if what a task hands over means the same."""
        return hashlib.sha256(json.dumps(self.to_json(), separators=(",", ":")).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Changes:
    """What tasks may change in a model; the rest are constants of it, which is cheaper.

    Attributes:
        masked: The paths of the kernels that have masks.
        norm: Whether tasks have batch norm of their own.
        bits: Bits of a number of a mask; see `MaskCode`.
        classes: For how many classes heads are.
    """

    masked: frozenset[str]
    norm: bool
    bits: int
    classes: int

    @classmethod
    def of(cls, packs: Sequence[TaskPack], max_classes: int | None = None) -> "Changes":
        """Returns what these tasks change, with room for `max_classes`, or as many as the largest task has if None."""
        return cls(
            masked=frozenset(path for pack in packs for path in pack.masks),
            norm=any(pack.norm for pack in packs),
            bits=2 if any(pack.mask_kind == "ternary" for pack in packs) else 1,
            classes=max(len(pack.class_names) for pack in packs) if max_classes is None else max_classes,
        )

    def check(self, pack: TaskPack) -> None:
        """Checks that a task changes no more than that.

        Raises:
            PackError: If it does.
        """
        own, task = Changes.of([pack]), f"Task {pack.task!r}"
        if own.classes > self.classes:
            raise PackError(f"{task} has {own.classes} classes, and the model has room for {self.classes}.")
        if more := sorted(own.masked - self.masked):
            raise PackError(f"{task} has a mask for {more[0]!r}, which is a constant of the model; export it anew.")
        if own.norm > self.norm:
            raise PackError(f"{task} has batch norm of its own, which is constant in the model; export it anew.")
        if own.bits > self.bits:
            raise PackError(f"{task} has ternary masks, and the model takes binary ones; export it anew.")
