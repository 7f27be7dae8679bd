"""What tasks change beside masks and batch norm, in a graph: kernels and vectors made of the arrays of `PartTables`."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from piggyback_tf.packs.parts import AFFINE, DOWN, SCALE

from .layout import Section, WeightLayout
from .network import affine_piece, in_shape, mask_piece
from .part_tables import CHANGES, PartTables

# How `part_shape` begins, and how many numbers an affine mask is.
_SCALE_SIDES, _AFFINE_NUMBERS = 4, 6


class PartGraph:
    """The parts of all tasks of an export. Of what no task has, nothing is in the graph.

    Args:
        tables: The tables.
        variables: Their arrays by name, as variables of the export.
        layout: Where weights are.
    """

    def __init__(self, tables: PartTables, variables: Mapping[str, tf.Variable], layout: WeightLayout):
        self._layout, self._variables = layout, variables
        self._uses = {change: tables.uses(change) for change in CHANGES}
        # Where all tasks that change kernels do so, nothing is asked.
        self._all_have = np.all(tables.part_start >= 0, axis=0)
        self._replaces = len(tables.vectors) > 1

    def kernels(
        self, task: tf.Tensor, flat: tf.Tensor, planes: tf.Tensor, plain: Callable[[], dict[str, tf.Tensor]]
    ) -> dict[str, tf.Tensor]:
        """Returns the kernels of a task by path.

        Args:
            task: Its number, int32 `[]`.
            flat: The vector of kernels of the base, float32 `[n]`.
            planes: The task's mask as of `WeightLayout.pack_mask`, uint8 `[1 or 2, n / 8]`.
            plain: Returns the kernels of a task that changes none in another way than by its mask.
        """
        if not any(uses.any() for uses in self._uses.values()):
            return plain()
        row = tf.gather(self._read("part_row"), task)
        paths = list(self._layout.kernels.shapes)
        found = tf.cond(
            row >= 0, lambda: list(self._composed(row, flat, planes).values()), lambda: list(plain().values())
        )
        return dict(zip(paths, found, strict=True))

    def rest(self, task: tf.Tensor, base: tf.Tensor) -> tf.Tensor:
        """Returns the weights of a task that are neither kernels nor batch norm, float32 `[n]`.

        Args:
            task: Its number, int32 `[]`.
            base: Those of the base.
        """
        if not self._replaces:
            return base
        row = tf.gather(self._read("vector_row"), task)

        def replaced() -> tf.Tensor:
            own = tf.gather(self._read("vectors"), row)
            if list(self._layout.vectors.shapes) == list(self._layout.rest.shapes):
                return own
            rows = dict(zip(self._layout.rest.shapes, _rows(self._layout.rest, base), strict=True))
            rows |= zip(self._layout.vectors.shapes, _rows(self._layout.vectors, own), strict=True)
            return tf.reshape(tf.concat(list(rows.values()), axis=0), [-1])

        return tf.ensure_shape(tf.cond(row > 0, replaced, lambda: base), [self._layout.rest.length])

    def _composed(self, row: tf.Tensor, flat: tf.Tensor, planes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the kernels of a task with a row in `part_start`: `s (k0 W + k1 + (k2 + k3 W) M) + A B`."""
        kernels: dict[str, tf.Tensor] = {}
        starts, shapes = (tf.gather(self._read(name), row) for name in ("part_start", "part_shape"))
        for place, path in enumerate(self._layout.kernels.shapes):
            # One after another, as those that are masked alone; see there.
            with tf.control_dependencies(list(kernels.values())[-1:]):
                kernels[path] = self._kernel(place, starts[place], shapes[place], flat, planes)
        return kernels

    def _kernel(self, place: int, starts: tf.Tensor, shape: tf.Tensor, flat: tf.Tensor, planes: tf.Tensor) -> tf.Tensor:
        """Returns a kernel of a task, by its place among all and its rows in `part_start` and `part_shape`."""
        path, sides, start = list(self._layout.kernels.items())[place]
        end = start + self._layout.kernels.rows[place] * self._layout.kernels.row
        piece = flat, planes, tf.constant(start), tf.constant(end)
        made = self._changed(
            AFFINE,
            place,
            starts,
            lambda first: affine_piece(*piece, self._numbers(first, _AFFINE_NUMBERS)),
            lambda: mask_piece(*piece),
        )
        masked = in_shape(self._layout.kernels, path, made)

        def scale(first: tf.Tensor) -> tf.Tensor:
            own = shape[_SCALE_SIDES - len(sides) : _SCALE_SIDES]
            return masked * tf.reshape(self._numbers(first, tf.reduce_prod(own)), own)

        scaled = self._changed(SCALE, place, starts, scale, lambda: masked)

        def add(first: tf.Tensor) -> tf.Tensor:
            rank, rows, columns = shape[_SCALE_SIDES], math.prod(sides[:-1]), sides[-1]
            numbers = self._numbers(first, rank * (rows + columns))
            down = tf.reshape(numbers[: rank * rows], tf.stack([rows, rank]))
            up = tf.reshape(numbers[rank * rows :], tf.stack([rank, columns]))
            return scaled + tf.reshape(tf.matmul(down, up), sides)

        return tf.ensure_shape(self._changed(DOWN, place, starts, add, lambda: scaled), sides)

    def _changed(
        self,
        change: str,
        place: int,
        starts: tf.Tensor,
        do: Callable[[tf.Tensor], tf.Tensor],
        otherwise: Callable[[], tf.Tensor],
    ) -> tf.Tensor:
        """Returns a kernel changed in one of `CHANGES` if the task does so, or the other one."""
        column = CHANGES.index(change)
        if not self._uses[change][place]:
            return otherwise()
        first = starts[column]
        if self._all_have[place, column]:
            return do(first)
        return tf.cond(first >= 0, lambda: do(first), otherwise)

    def _numbers(self, first: tf.Tensor, count: "tf.Tensor | int") -> tf.Tensor:
        return tf.slice(self._read("parts"), first[None], tf.cast(count, tf.int64)[None])

    def _read(self, name: str) -> tf.Tensor:
        return tf.identity(self._variables[name])


def _rows(section: Section, flat: tf.Tensor) -> list[tf.Tensor]:
    return tf.split(tf.reshape(flat, [-1, section.row]), section.rows)
