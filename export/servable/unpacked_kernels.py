"""Masked kernels in a server's memory: whether they are unpacked there once or in each call, and those that are."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from .layout import WeightLayout
from .options import MIB
from .task_tables import TaskTables

# So many tasks are unpacked if nobody asks for anything. Each task takes a server about 0.1 s of loading, whatever the
# size of the base, and its kernels in memory; a call of one image gains a sixth at the most.
_FEW = 4


class UnpackedKernels(tf.saved_model.experimental.TrackableResource):
    """The masked kernels of one task, made once by the SavedModel's init op and never written again.

    Args:
        name: What no other resource of a process is called.
        length: Length n of the vector of kernels.
        unpack: Makes the vector, float32 `[n]`, of numbers, int32: of the rows of a mask in the packed masks, or of the
            number of a task.
        numbers: Those of the task.
    """

    def __init__(self, name: str, length: int, unpack: Callable[[tf.Tensor], tf.Tensor], numbers: Sequence[int]):
        super().__init__()
        self._shared_name = name
        self._length, self._unpack, self._numbers = length, unpack, numbers
        # Made here, outside of any function that would keep the handle to itself.
        self.resource_handle  # noqa: B018

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[self._length], shared_name=self._shared_name)

    def _initialize(self) -> None:
        kernels = self._unpack(tf.constant(self._numbers, tf.int32))
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=kernels)

    def read(self) -> tf.Tensor:
        """Returns the masked kernels, `[n]`; no copy is made."""
        return tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.float32)


def choose_cache(cache: str, memory_limit: int, layout: WeightLayout, tables: TaskTables) -> str:
    """Decides how kernels are kept, so that all arrays of the export fit into memory.

    Args:
        cache: One of `CACHES`; `"auto"` unpacks those of a few tasks if that fits.
        memory_limit: Megabytes (2^20 bytes) for the arrays; what a server needs for images and features comes on top.
        layout: Where weights are.
        tables: The tasks.

    Returns:
        `"packed"` or `"unpacked"`.

    Raises:
        ValueError: If it does not fit.
    """
    need = memory_needed(layout, tables)
    chosen = cache
    if cache == "auto":
        fits = need["unpacked"] <= memory_limit * MIB
        chosen = "unpacked" if fits and len(tables.names) <= _FEW else "packed"
    if need[chosen] > memory_limit * MIB:
        smaller = ""
        if need["packed"] <= memory_limit * MIB:
            smaller = f" With --cache=packed they take {_mebibytes(need['packed'])} MiB."
        raise ValueError(
            f"{len(tables.names)} tasks with {chosen} kernels take {_mebibytes(need[chosen])} MiB of memory, and "
            f"--memory_limit is {memory_limit} MiB.{smaller}"
        )
    return chosen


def memory_needed(layout: WeightLayout, tables: TaskTables) -> dict[str, int]:
    """Returns the bytes of all arrays in a server's memory by way of keeping kernels."""
    base = 4 * (layout.kernels.length + layout.rest.length)
    # Texts in memory take 24 bytes each, and the longer ones what they are long.
    texts = sum(24 + len(text) for name in ("names", "labels") for text in getattr(tables, name))
    arrays: dict[str, Any] = tables.arrays()
    packed = base + texts + sum(array.nbytes for array in arrays.values() if array.dtype != object)
    return {"packed": packed, "unpacked": packed + 4 * layout.kernels.length * len(tables.names)}


def _mebibytes(count: int) -> str:
    return f"{-(-count // MIB):,}"
