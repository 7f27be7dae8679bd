"""What a task makes of the variables of its base: masked kernels from packed bits, and all else that it changes."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence, Set

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.bits import unpack_bits
from piggyback_tf.packs.held_task import HeldTask
from piggyback_tf.packs.parts import AFFINE, VECTOR, changed_weights, composed_kernel, part_name
from piggyback_tf.packs.spare_memory import SpareMemory

# TensorFlow takes memory over without a copy if it begins at a multiple of this. It is also room for eight weights of
# any dtype, so that the weights of a mask's last byte may be written in full behind each kernel's end.
_ALIGNMENT = 64
# Weights that are unpacked at once: large enough to be fast, and little memory beside a kernel of a hundred megabytes.
_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class TaskTensors:
    """A task, ready to predict with.

    Attributes:
        weights: The value of every variable of the base for this task, in order.
        head: The variables of the head, float32, by name.
        nbytes: Bytes that belong to this task; tensors of the base are shared and not counted.
    """

    weights: list[tf.Tensor]
    head: dict[str, tf.Tensor]
    nbytes: int


class BaseTensors:
    """The variables of a base as tensors over the same memory, which are read and never written.

    Args:
        variables: The variables by canonical path.
    """

    def __init__(self, variables: Mapping[str, keras.Variable]):
        self.tensors = {path: tf.convert_to_tensor(variable.value) for path, variable in variables.items()}
        self._device = next(iter(self.tensors.values())).device
        # On a CPU these share the tensors' memory, too.
        self._arrays = {path: np.asarray(tensor) for path, tensor in self.tensors.items()}
        self._memory = SpareMemory()

    @property
    def nbytes(self) -> int:
        """Bytes of all variables."""
        return sum(array.nbytes for array in self._arrays.values())

    def materialise(self, task: HeldTask) -> TaskTensors:
        """Returns the tensors of a task, which has been checked to fit the base.

        All that is changed of the base, and the head, lie one behind another in one piece of memory, which is free when
        the last tensor goes.
        """
        arrays = task.arrays()
        paths = [*arrays.changed]
        like = [*(self._arrays[path] for path in paths), *arrays.head.values()]
        buffers = self._allocate(like)
        roles = changed_weights(arrays.parts)
        for path, weights, buffer in zip(paths, like, buffers, strict=False):
            write_weight(arrays, path, roles.get(path, frozenset()), weights, buffer)
        for value, buffer in zip(arrays.head.values(), buffers[len(paths) :], strict=True):
            buffer[: value.size] = _as_words(value)
        tensors = (_tensor(*pair, self._device) for pair in zip(buffers, like, strict=True))
        own = dict(zip(paths, tensors, strict=False))
        return TaskTensors(
            weights=[own.get(path, tensor) for path, tensor in self.tensors.items()],
            head=dict(zip(arrays.head, tensors, strict=True)),
            nbytes=sum(buffer.nbytes for buffer in buffers),
        )

    def _allocate(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns room for each array, as integers of its width, in one piece of memory; all of it aligned."""
        sizes = [math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT for array in arrays]
        memory = self._memory.take(sum(sizes) + _ALIGNMENT)
        first = -memory.ctypes.data % _ALIGNMENT
        spans = itertools.pairwise(itertools.accumulate(sizes, initial=first))
        return [memory[a:b].view(f"int{8 * array.itemsize}") for (a, b), array in zip(spans, arrays, strict=True)]


def write_weight(arrays: TaskArrays, path: str, roles: Set[str], weights: np.ndarray, out: np.ndarray) -> None:
    """Writes what a weight of the base is for a task; the one place where that is made.

    Args:
        arrays: What the task holds.
        path: Canonical path of the weight, one of `arrays.changed`.
        roles: Those of what it has of the weight among `arrays.parts`.
        weights: The weight of the base, contiguous, of any shape and floating dtype.
        out: Integers as wide as a weight, with room for eight more behind the last.
    """
    if path in arrays.masks and AFFINE in roles:
        bits = arrays.masks[path]
        value = composed_kernel(weights, arrays.parts, path, unpack_bits(bits.packed, bits.shape, arrays.mask_kind))
    elif path in arrays.masks:
        apply_mask(weights, arrays.masks[path].packed, out)
        if not roles:
            return
        value = composed_kernel(out[: weights.size].view(weights.dtype).reshape(weights.shape), arrays.parts, path)
    elif path in arrays.norm:
        value = arrays.norm[path]
    elif VECTOR in roles:
        value = arrays.parts[part_name(VECTOR, path)]
    else:
        value = composed_kernel(weights, arrays.parts, path)
    out[: weights.size] = _as_words(value.astype(weights.dtype))


def task_weight(arrays: TaskArrays, path: str, weights: np.ndarray) -> np.ndarray:
    """Returns what a weight of the base is for a task, as an array of its shape and dtype; see `write_weight`."""
    roles = changed_weights(arrays.parts).get(path, frozenset())
    out = np.empty(weights.size + 8, f"int{8 * weights.itemsize}")
    write_weight(arrays, path, roles, np.ascontiguousarray(weights), out)
    return out[: weights.size].view(weights.dtype).reshape(weights.shape)


def apply_mask(weights: np.ndarray, packed: np.ndarray, out: np.ndarray) -> None:
    """Writes masked weights: +0.0 where the mask drops, else the weight's own bits, with the sign flipped if negated.

    Args:
        weights: The weights, contiguous, of any shape and floating dtype.
        packed: Their packed mask, uint8 `[planes, ceil(n / 8)]`.
        out: Integers as wide as a weight, `[8 ceil(n / 8)]` or longer; what is behind the n-th is 0 afterwards.
    """
    words = _as_words(weights)
    keep, sign = _tables(words.dtype)
    rows = out[: 8 * packed.shape[1]].reshape(-1, 8)
    for start in range(0, packed.shape[1], _CHUNK // 8):
        part = slice(start, start + _CHUNK // 8)
        # Eight weights a byte are looked up at once; "clip" only spares the check of the indices.
        np.take(keep, packed[0, part], axis=0, out=rows[part], mode="clip")
        masked = rows[part].reshape(-1)[: words.size - 8 * start]
        masked &= words[8 * start : 8 * start + masked.size]
        if len(packed) > 1:
            rows[part] ^= np.take(sign, packed[1, part], axis=0, mode="clip")


@functools.lru_cache
def _tables(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns, for each byte of a mask, eight words to AND with (all bits or none) and to XOR with (the sign bit)."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(dtype)
    return bits * dtype.type(-1), bits * np.iinfo(dtype).min


def _as_words(array: np.ndarray) -> np.ndarray:
    """Returns a view `[n]` of an array as integers of the same width."""
    return array.reshape(-1).view(f"int{8 * array.itemsize}")


def _tensor(words: np.ndarray, like: np.ndarray, device: str) -> tf.Tensor:
    """Returns a tensor over the memory of `words`, which must not change afterwards, with shape and dtype of `like`."""
    native = like.dtype.kind == "f"
    words = words[: like.size].reshape(like.shape)
    tensor = tf.experimental.dlpack.from_dlpack((words.view(like.dtype) if native else words).__dlpack__())
    if native and "CPU" in device:
        return tensor
    # NumPy cannot hand over bfloat16, which is no dtype of its own, nor anything to a GPU.
    with tf.device(device):
        return tf.bitcast(tensor, tf.as_dtype(like.dtype))
