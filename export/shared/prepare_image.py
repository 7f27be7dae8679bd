"""An image file as a task wants it: where exports are compared with the bank, and where a task is sent to a server."""

from collections.abc import Iterable

import numpy as np

from piggyback_tf.data import Operation, decode_image
from piggyback_tf.data.augment import apply_operations


def prepare_image(data: bytes, name: str, operations: Iterable[Operation]) -> np.ndarray:
    """Returns an image file decoded and prepared, uint8 `[height, width, 3]`.

    Args:
        data: The file's content.
        name: Stands for the file in errors.
        operations: What `parse_augment` made of a task's `eval_augment`.

    Raises:
        DataError: If it is no image, or cannot be prepared.
    """
    return apply_operations(operations, decode_image(data, name))
