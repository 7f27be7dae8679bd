"""The tasks of an export in a graph: their arrays as variables, and the weights of the task that a call is about."""

import uuid
from collections.abc import Collection

import numpy as np
import tensorflow as tf

from .network import ServedNetwork, in_rows, split_section, unpack_kernels, unpack_vector
from .part_graph import PartGraph
from .part_tables import PART_ARRAYS
from .task_tables import ARRAYS, Family, TaskTables
from .unpacked_kernels import UnpackedKernels


class ServedTasks(tf.Module):
    """All tasks on one base; its subclass has the signatures.

    Whatever an export knows of its tasks is in variables.

    Args:
        base: The base.
        tables: The tasks.
        unpacked: Whether kernels are unpacked once.
    """

    def __init__(self, base: ServedNetwork, tables: TaskTables, *, unpacked: bool):
        super().__init__(name="servable")
        self._section, self._count = base.layout.kernels, len(tables.names)
        self._families, self._family_of = tables.families, tables.family_of
        self.kernels = tf.Variable(base.kernels, trainable=False, name="kernels")
        self.rest = tf.Variable(base.rest, trainable=False, name="rest")
        # For the second servable, which reads it from the same file.
        self.norm = tf.Variable(tables.norms[0], trainable=False, name="norm")
        for name, array in tables.arrays().items():
            setattr(self, name, table_variable(name, array))
        if not tables.only_classes:
            self.family = family_variable(tables)
        self._ternary = bool((tables.sign_row >= 0).any())
        self._parts: PartGraph | None = None
        if tables.parts is not None:
            variables = {name: getattr(self, name) for name in PART_ARRAYS}
            self._parts = PartGraph(tables.parts, variables, base.layout)
        self.unpacked = self._unpack(tables) if unpacked else []

    def known(self, task: tf.Tensor, families: Collection[Family]) -> tf.Tensor:
        """Returns which numbers, int32 `[B]`, are those of tasks of some families."""
        there = (task >= 0) & (task < self._count)
        if set(families) == set(self._families):
            return there
        numbers = [place for place, family in enumerate(self._families) if family in families]
        return there & tf.reduce_any(self.family_of(task)[:, None] == numbers, axis=1)

    def or_first(self, task: tf.Tensor, families: Collection[Family]) -> tf.Tensor:
        """Returns numbers of tasks, int32 `[B]`; in place of those that are of none of some families their first."""
        first = next(place for place, family in enumerate(self._family_of) if family in families)
        if len(self._families) == 1:
            return tf.maximum(task, first)
        return tf.where(self.known(task, families), task, first)

    def family_of(self, task: tf.Tensor) -> tf.Tensor:
        """Returns the place of each task's family in `TaskTables.families`; of a number that is no task's any one."""
        return tf.gather(self.family, tf.clip_by_value(task, 0, self._count - 1))

    def find(self, task: tf.Tensor) -> tf.Tensor:
        """Returns the place of each name among the tasks, int32; -1 if there is none."""
        same = tf.cast(task[:, None] == tf.identity(self.names)[None], tf.int32)
        return tf.where(tf.reduce_max(same, axis=1) > 0, tf.argmax(same, axis=1, output_type=tf.int32), -1)

    def base_weights(self, task: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Returns what the networks of `network.py` take of the base, for one task, int32 `[]`."""
        norm = tf.gather(self.norms, tf.gather(self.norm_row, task))
        kernels, rest = list(self._kernels(task).values()), tf.identity(self.rest)
        return kernels, norm, rest if self._parts is None else self._parts.rest(task, rest)

    def head(self, task: tf.Tensor, length: "tf.Tensor | int") -> tf.Tensor:
        """Returns the numbers of a task's head, float32 `[length]`."""
        length = tf.cast(length, tf.int64)
        return tf.slice(self.heads, tf.gather(self.head_start, task)[None], length[None])

    def dense_head(self, task: tf.Tensor, features: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns kernel `[F, C]`, bias `[C]` and C of a task whose head is a layer on so many features."""
        classes = tf.gather(self.classes, task)
        count = features * classes
        numbers = self.head(task, count + classes)
        return tf.reshape(numbers[:count], [-1, classes]), numbers[count:], classes

    def _kernels(self, task: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.unpacked:
            return split_section(self._section, tf.switch_case(task, [kernels.read for kernels in self.unpacked]))
        return self._made_kernels(task)

    def _made_kernels(self, task: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the kernels of a task by path, made of the base's in this call."""
        rows = tf.gather(self.keep_row, task)[None]
        if self._ternary:
            sign = tf.gather(self.sign_row, task)[None]
            rows = tf.concat([rows, tf.boolean_mask(sign, sign >= 0)], axis=0)
        flat, planes = tf.identity(self.kernels), tf.gather(self.planes, rows)

        def masked() -> dict[str, tf.Tensor]:
            return unpack_kernels(self._section, flat, planes)

        return masked() if self._parts is None else self._parts.kernels(task, flat, planes, masked)

    def _unpack(self, tables: TaskTables) -> list[UnpackedKernels]:
        # Traced once for all tasks.
        unpack = tf.function(
            (lambda rows: unpack_vector(self._section, self.kernels.read_value(), tf.gather(self.planes, rows)))
            if self._parts is None
            else (lambda task: in_rows(self._section, self._made_kernels(task[0]))),
            [tf.TensorSpec([None], tf.int32)],
            autograph=False,
        )
        # A server holds several versions of an export at a time, and a process several exports.
        name = f"kernels_{uuid.uuid4().hex}"
        rows = zip(tables.keep_row.tolist(), tables.sign_row.tolist(), strict=True)
        numbers = [[keep] if sign < 0 else [keep, sign] for keep, sign in rows]
        if self._parts is not None:
            numbers = [[task] for task in range(self._count)]
        return [
            UnpackedKernels(f"{name}_{index}", self._section.length, unpack, own) for index, own in enumerate(numbers)
        ]


def table_variable(name: str, array: np.ndarray) -> tf.Variable:
    """Returns the variable for an array of `TaskTables`."""
    dtype = tf.string if ARRAYS.get(name) is object else tf.as_dtype(array.dtype)
    return tf.Variable(array, trainable=False, dtype=dtype, name=name)


def family_variable(tables: TaskTables) -> tf.Variable:
    """Returns the variable that says of which family each task is; where all are of classes there is none."""
    return tf.Variable(tables.family_numbers(), trainable=False, name="family")


def class_labels(tables: tf.Module, tasks: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Returns the names of classes, string `[B, k]`; "" for those that a task does not have.

    Args:
        tables: A module with the variables `classes`, `label_start` and `labels`.
        tasks: Tasks, int32 `[B]`.
        classes: Classes of each, int32 `[B, k]`.
    """
    there = classes < tf.gather(tables.classes, tasks)[:, None]
    places = tf.gather(tables.label_start, tasks)[:, None] + tf.cast(classes, tf.int64)
    return tf.where(there, tf.gather(tables.labels, tf.where(there, places, 0)), "")
