"""The heads of several tasks as one Dense layer, with their classes side by side."""

from collections.abc import Mapping

import numpy as np

from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.problems import HEAD_NAME


def join_heads(memory: Memory) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel `[F, C]` and the bias `[C]` of all learned heads, in the order of learning."""
    heads = list(memory.own.values())
    kernel = np.concatenate([head[f"{HEAD_NAME}/kernel"] for head in heads], axis=1)
    return kernel, np.concatenate([head[f"{HEAD_NAME}/bias"] for head in heads])


def split_heads(kernel: np.ndarray, bias: np.ndarray, classes: Mapping[str, int]) -> dict[str, Arrays]:
    """Returns what `Memory.own` has of each head, by task.

    Args:
        kernel: `[F, C]`.
        bias: `[C]`.
        classes: The number of classes of each task, in the order in which they lie; `C` together.
    """
    ends = np.cumsum(list(classes.values()))[:-1]
    parts = zip(classes, np.split(kernel, ends, axis=1), np.split(bias, ends), strict=True)
    return {task: {f"{HEAD_NAME}/kernel": own, f"{HEAD_NAME}/bias": offset} for task, own, offset in parts}
