"""Masks in memory as bits: one bit a weight for binary masks, two for ternary ones.

Bits are filled from the least significant one, in the C order of the kernel; the last byte is filled up with zeros.
"""

import dataclasses
import math

import numpy as np

MASK_VALUES = {"binary": (0, 1), "ternary": (-1, 0, 1)}


@dataclasses.dataclass(frozen=True, eq=False)
class MaskBits:
    """The packed mask of one weight.

    Attributes:
        shape: The shape of the weight.
        packed: The bits, uint8 `[planes, bytes a plane]`; see `pack_bits`.
    """

    shape: tuple[int, ...]
    packed: np.ndarray

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def zeros(self) -> float:
        """The fraction of the weights that the mask drops."""
        return count_zeros(self.packed, self.shape) / self.size


def packed_shape(shape: tuple[int, ...], kind: str) -> tuple[int, int]:
    """Returns the shape of the packed bits of a mask: `(planes, bytes a plane)`."""
    return (1 if kind == "binary" else 2, -(-math.prod(shape) // 8))


def pack_bits(mask: np.ndarray, kind: str) -> np.ndarray:
    """Packs a mask.

    Args:
        mask: An array of any shape with the values of its kind, see `MASK_VALUES`.
        kind: `"binary"` (one plane: 1 keeps the weight) or `"ternary"` (two planes: which weights
            are kept, and which of them are negated).

    Returns:
        A uint8 array of shape `packed_shape(mask.shape, kind)`.

    Raises:
        ValueError: If the mask holds other values.
    """
    mask = np.asarray(mask)
    if not np.isin(mask, MASK_VALUES[kind]).all():
        raise ValueError(f"A {kind} mask holds the values {MASK_VALUES[kind]} only.")
    planes = [mask != 0] if kind == "binary" else [mask != 0, mask < 0]
    return np.stack([np.packbits(plane.reshape(-1), bitorder="little") for plane in planes])


def check_bits(packed: np.ndarray, shape: tuple[int, ...], kind: str) -> None:
    """Checks that `pack_bits` makes `packed` of some mask of this shape and kind, without unpacking it.

    Raises:
        ValueError: If not.
    """
    if packed.dtype != np.uint8 or packed.shape != packed_shape(shape, kind):
        raise ValueError(
            f"A {kind} mask of shape {list(shape)} is uint8 {list(packed_shape(shape, kind))} when packed, "
            f"not {packed.dtype} {list(packed.shape)}."
        )
    used = math.prod(shape) % 8
    if used and (packed[:, -1] >> used).any():
        raise ValueError("Bits behind the last weight are set.")
    if kind == "ternary" and (packed[1] & ~packed[0]).any():
        raise ValueError("A weight is marked as negated and as dropped.")


def unpack_bits(packed: np.ndarray, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Unpacks a mask: the int8 array of `shape` that `pack_bits` was given.

    Raises:
        ValueError: If `packed` is not what `pack_bits` makes of any mask of that shape and kind.
    """
    check_bits(packed, shape, kind)
    bits = np.unpackbits(packed, axis=1, count=math.prod(shape), bitorder="little").view(np.int8)
    mask = bits[0] if kind == "binary" else bits[0] - 2 * bits[1]
    return mask.reshape(shape)


def count_ones(packed: np.ndarray) -> int:
    """Returns how many bits are set."""
    return int(np.bitwise_count(packed).sum(dtype=np.int64))


def count_zeros(packed: np.ndarray, shape: tuple[int, ...]) -> int:
    """Returns how many weights a packed mask drops, without unpacking it."""
    return math.prod(shape) - count_ones(packed[0])
