"""The base hash: the SHA-256 of a network's weights, the same on every machine and in every process.

What is computed with the weights is the other half of a base's identity; see `structure_text.py`.
"""

import hashlib
import struct
import sys

import keras
import numpy as np

from piggyback_tf.backbones.paths import named_variables


def model_hash(model: keras.Model) -> str:
    """Returns the SHA-256 over path, shape, dtype and bytes of every weight of `model`.

    Weights are taken in the order of their canonical paths. Every field goes in with its length before it, so that no
    two networks give the same stream of bytes. Numbers are little-endian and in C order. Image size, layer objects,
    trainable flags and the seeds of random layers do not count.

    Args:
        model: A built functional or sequential model.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(b"piggyback_tf base 1\n")
    variables = named_variables(model)
    for path in sorted(variables):
        value = np.ascontiguousarray(variables[path].numpy())
        _add(digest, path.encode("utf-8"))
        _add(digest, ",".join(str(size) for size in variables[path].shape).encode("ascii"))
        _add(digest, keras.backend.standardize_dtype(variables[path].dtype).encode("ascii"))
        if sys.byteorder == "big":
            value = value.byteswap()
        # Viewed as bytes, because not every dtype (bfloat16) can be handed to hashlib; no copy is made.
        _add(digest, value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _add(digest, field: bytes | np.ndarray) -> None:
    digest.update(struct.pack("<Q", len(field)))
    digest.update(field)
