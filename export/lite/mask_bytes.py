"""Masks as bytes that LiteRT's own operators can read: a table says which numbers a byte stands for."""

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

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
