"""What tasks of an export change of their base beside masks and batch norm, as a few arrays; see `packs/parts.py`.

An export has these arrays if one of its tasks needs them. What is in them is in the order of the layout.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.parts import AFFINE, DOWN, SCALE, UP, VECTOR, affine_numbers, part_name, split_name

from ..shared.errors import ExportError
from .layout import WeightLayout

# The arrays that are variables of an export, by their dtype there.
PART_ARRAYS = {
    "parts": np.float32,
    "part_row": np.int32,
    "part_start": np.int64,
    "part_shape": np.int32,
    "vectors": np.float32,
    "vector_row": np.int32,
}
# What a kernel can have, in the order of `part_start`.
CHANGES = (AFFINE, SCALE, DOWN)
# Sides of the kernel with most of them.
_SIDES = 4


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class PartTables:
    """The parts of the T tasks of an export with K kernels, R tasks of which change kernels.

    Attributes:
        parts: All numbers for kernels, float32 `[N]`. Of an affine mask there are by what a weight is multiplied where
            M is 0, 1 and -1, and what is added; of a low rank A, and behind it B.
        part_row: The row of a task in the next two, int32 `[T]`; -1 if it changes no kernel.
        part_start: The first number of each of `CHANGES` for each kernel, int64 `[R, K, 3]`; -1 if there is none.
        part_shape: The shape of the scales of each kernel, with ones before it, and the rank: int32 `[R, K, 5]`.
        vectors: The vectors of the base that are not of batch norm, as `WeightLayout.vectors` has them, float32
            `[rows, V]`; the first row is the base's.
        vector_row: The row of a task, int32 `[T]`.
    """

    parts: np.ndarray
    part_row: np.ndarray
    part_start: np.ndarray
    part_shape: np.ndarray
    vectors: np.ndarray
    vector_row: np.ndarray

    @classmethod
    def empty(cls, layout: WeightLayout, base_rest: np.ndarray, tasks: int) -> "PartTables":
        """Returns the tables of so many tasks that have no parts.

        Args:
            layout: Where weights are.
            base_rest: The weights of the base that are neither kernels nor batch norm, as a vector.
            tasks: How many tasks.
        """
        kernels, pieces = len(layout.kernels.shapes), layout.rest.split(base_rest)
        return cls(
            parts=np.zeros(0, np.float32),
            part_row=np.full(tasks, -1, np.int32),
            part_start=np.zeros((0, kernels, len(CHANGES)), np.int64),
            part_shape=np.zeros((0, kernels, _SIDES + 1), np.int32),
            vectors=layout.vectors.flatten(pieces)[None],
            vector_row=np.zeros(tasks, np.int32),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name."""
        return {name: getattr(self, name) for name in PART_ARRAYS}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray]) -> "PartTables | None":
        """Returns the tables of which `arrays` are those of `arrays()` among others, or None if they are not there."""
        if not PART_ARRAYS.keys() <= arrays.keys():
            return None
        return cls(**{name: np.asarray(arrays[name], dtype) for name, dtype in PART_ARRAYS.items()})

    def uses(self, change: str) -> np.ndarray:
        """Returns for which kernels some task has one of `CHANGES`, bool `[K]`."""
        return np.any(self.part_start[:, :, CHANGES.index(change)] >= 0, axis=0)

    def with_tasks(self, tasks: Iterable["TaskParts"], layout: WeightLayout) -> "PartTables":
        """Returns the tables with tasks behind those that are there."""
        count, changing, replacing = self.parts.size, len(self.part_start), len(self.vectors)
        numbers, starts, shapes, vectors = [self.parts], [self.part_start], [self.part_shape], [self.vectors]
        part_row, vector_row = self.part_row.tolist(), self.vector_row.tolist()
        for task in tasks:
            part_row.append(changing if task.numbers.size else -1)
            vector_row.append(replacing if task.vectors else 0)
            if task.numbers.size:
                numbers.append(task.numbers)
                starts.append(np.where(task.starts < 0, task.starts, count + task.starts)[None])
                shapes.append(task.shapes[None])
                count, changing = count + task.numbers.size, changing + 1
            if task.vectors:
                vectors.append(layout.vectors.flatten(task.vectors, otherwise=self.vectors[0])[None])
                replacing += 1
        return PartTables(
            parts=np.concatenate(numbers),
            part_row=np.array(part_row, np.int32),
            part_start=np.concatenate(starts),
            part_shape=np.concatenate(shapes),
            vectors=np.concatenate(vectors),
            vector_row=np.array(vector_row, np.int32),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TaskParts:
    """The parts of one task.

    Attributes:
        numbers: As `PartTables.parts`.
        starts: As a row of `PartTables.part_start`, counted from the first of `numbers`.
        shapes: As a row of `PartTables.part_shape`.
        vectors: The vectors that it replaces by path.
    """

    numbers: np.ndarray
    starts: np.ndarray
    shapes: np.ndarray
    vectors: dict[str, np.ndarray]

    def __bool__(self) -> bool:
        return self.numbers.size > 0 or bool(self.vectors)

    @classmethod
    def of(cls, pack: TaskPack, layout: WeightLayout) -> "TaskParts":
        """Returns the parts of a task.

        Args:
            pack: A pack that fits the base.
            layout: Where weights are.

        Raises:
            ExportError: If it changes a weight that the export holds as a constant.
        """
        places = {path: place for place, path in enumerate(layout.kernels.shapes)}
        numbers: list[np.ndarray] = [np.zeros(0, np.float32)]
        starts = np.full((len(places), len(CHANGES)), -1, np.int64)
        shapes = np.ones((len(places), _SIDES + 1), np.int32)
        vectors: dict[str, np.ndarray] = {}
        for name, value in pack.parts.items():
            role, path = split_name(name)
            if path not in (layout.vectors.shapes if role == VECTOR else places):
                raise ExportError(
                    f"Task {pack.task!r} changes {path!r}, which is not float32, or of a kind that exports hold as a "
                    "constant of all tasks. A TaskBank, evaluate, predict and merge take it."
                )
            if role == VECTOR:
                vectors[path] = value
            if role not in CHANGES:
                continue
            starts[places[path], CHANGES.index(role)] = sum(each.size for each in numbers)
            if role == AFFINE:
                numbers += affine_numbers(value)
            elif role == SCALE:
                numbers.append(value.reshape(-1))
                shapes[places[path], _SIDES - value.ndim : _SIDES] = value.shape
            else:
                numbers += [value.reshape(-1), pack.parts[part_name(UP, path)].reshape(-1)]
                shapes[places[path], _SIDES] = value.shape[-1]
        return cls(np.concatenate(numbers), starts, shapes, vectors)
