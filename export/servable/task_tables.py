"""What an export keeps of its tasks: masks, batch norm and heads as a few arrays, and where in them each task is."""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.parts import count_parts
from piggyback_tf.targets import TARGETS, USUAL

from ..shared.packs import head_of
from .layout import WeightLayout
from .part_tables import PartTables, TaskParts

# The arrays that are variables of every export, by their dtype there; texts are UTF-8.
ARRAYS = {
    "planes": np.uint8,
    "norms": np.float32,
    "heads": np.float32,
    "keep_row": np.int32,
    "sign_row": np.int32,
    "norm_row": np.int32,
    "head_start": np.int64,
    "classes": np.int32,
    "label_start": np.int64,
    "preparation": np.int32,
    "names": object,
    "labels": object,
}


@dataclasses.dataclass(frozen=True)
class Family:
    """Tasks that one graph answers: of one problem, with heads of one kind for images of one size.

    Attributes:
        problem: What is to be found in an image.
        spec: The head; see `HeadSpec.family`.
    """

    problem: str
    spec: HeadSpec

    @property
    def of_classes(self) -> bool:
        """Whether its tasks are answered by the signatures of tasks of classes."""
        return self.problem in TARGETS and TARGETS[self.problem].served_first and self.spec.is_dense


# Tasks of classes. An export that holds no other is as it was when there were no others, to the names of its arrays.
CLASSES = Family(USUAL, HeadSpec(DENSE, 0))


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class TaskTables:
    """The tasks of an export, T in number.

    Attributes:
        planes: Packed masks, uint8 `[rows, mask_bytes]`; see `WeightLayout.pack_mask`. A ternary task has two rows.
        norms: Batch norm, float32 `[rows, M]`; the first row is the base's.
        heads: For each task its kernel `[F, C]` and its bias `[C]`, or the variables of another head in the order of
            their names, one behind another: float32 `[numbers]`.
        keep_row: The row of `planes` that tells which weights a task keeps, int32 `[T]`.
        sign_row: The row that tells which of them it negates; -1 if none.
        norm_row: The row of `norms`, int32 `[T]`.
        head_start: The first number in `heads`, int64 `[T]`.
        classes: The number of classes, int32 `[T]`.
        label_start: The first text in `labels`, int64 `[T]`.
        preparation: The place in `preparations`, int32 `[T]`.
        names: The tasks' names, bytes `[T]`.
        labels: The names of all classes of all tasks, one behind another, bytes.
        preparations: The augmentation strings that prepare images, each once.
        details: For each task what else is known of it.
        parts: What tasks change beside that; None if none does.
    """

    planes: np.ndarray
    norms: np.ndarray
    heads: np.ndarray
    keep_row: np.ndarray
    sign_row: np.ndarray
    norm_row: np.ndarray
    head_start: np.ndarray
    classes: np.ndarray
    label_start: np.ndarray
    preparation: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    preparations: tuple[str, ...]
    details: tuple[dict[str, Any], ...]
    parts: PartTables | None = None

    @classmethod
    def empty(cls, layout: WeightLayout, base_norm: np.ndarray) -> "TaskTables":
        """Returns the tables of no task.

        Args:
            layout: Where weights are.
            base_norm: Batch norm of the base, `[M]`.
        """
        arrays: dict[str, Any] = {name: np.zeros(0, dtype) for name, dtype in ARRAYS.items()}
        arrays |= {"planes": np.zeros((0, layout.mask_bytes), np.uint8), "norms": base_norm[None]}
        return cls(**arrays, preparations=(), details=())

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS} | ({} if self.parts is None else self.parts.arrays())

    @functools.cached_property
    def family_of(self) -> tuple[Family, ...]:
        """The family of each task."""
        return tuple(family_in(entry) for entry in self.details)

    @functools.cached_property
    def families(self) -> tuple[Family, ...]:
        """The families of the tasks, each once: that of tasks of classes first, others in the order of their tasks."""
        found = dict.fromkeys(self.family_of)
        return tuple(sorted(found, key=lambda family: not family.of_classes))

    @property
    def head_specs(self) -> tuple[HeadSpec, ...]:
        """The heads that are more than a layer on the features, each once, in the order of their tasks."""
        return tuple(dict.fromkeys(family.spec for family in self.families if not family.spec.is_dense))

    @property
    def only_classes(self) -> bool:
        """Whether all tasks are of classes."""
        return all(family.of_classes for family in self.families)

    def most_classes(self, families: Collection[Family]) -> int:
        """Returns how many classes the task has that has the most of some families; 0 if there is none."""
        pairs = zip(self.family_of, self.classes.tolist(), strict=True)
        return max((classes for family, classes in pairs if family in families), default=0)

    def family_numbers(self) -> np.ndarray:
        """Returns the place of each task's family in `families`, int32 `[T]`."""
        return np.array([self.families.index(family) for family in self.family_of], np.int32)

    def with_tasks(self, packs: Iterable[TaskPack], layout: WeightLayout, base_rest: np.ndarray) -> "TaskTables":
        """Returns the tables with more tasks behind those that are there, which stay as they are.

        Args:
            packs: Packs that fit the base, of other names than those that are there.
            layout: Where weights are.
            base_rest: The weights of the base that are neither kernels nor batch norm, as a vector.

        Raises:
            PackError: If a mask cannot be exported.
            ExportError: If another change of the base cannot be.
        """
        old = {name: getattr(self, name) for name in ARRAYS}
        new: dict[str, list] = {name: [] for name in ARRAYS}
        parts: list[TaskParts] = []
        unmasked = self._row_of_ones()
        lengths = {name: len(array) for name, array in old.items()}
        preparations, details = list(self.preparations), list(self.details)

        def append(array: str, rows: Any) -> int:
            """Puts rows behind an array and returns where they begin."""
            start = lengths[array]
            lengths[array] += len(rows)
            new[array].append(np.asarray(rows, ARRAYS[array]))
            return start

        for pack in packs:
            parts.append(TaskParts.of(pack, layout))
            planes = layout.pack_mask(pack)
            if pack.masks or not pack.parts:
                keep = append("planes", planes)
            else:
                # A row that keeps all weights serves every such task.
                keep = unmasked = append("planes", planes) if unmasked is None else unmasked
            append("keep_row", [keep])
            append("sign_row", [keep + 1 if len(planes) > 1 else -1])
            own_norm = [layout.norm.flatten(pack.norm, otherwise=self.norms[0])] if pack.norm else []
            append("norm_row", [append("norms", own_norm) if own_norm else 0])
            order = ("kernel", "bias") if head_of(pack).is_dense else sorted(pack.head)
            append("head_start", [append("heads", np.concatenate([pack.head[name].reshape(-1) for name in order]))])
            append("classes", [len(pack.class_names)])
            append("label_start", [append("labels", [name.encode() for name in pack.class_names])])
            append("names", [pack.task.encode()])
            if pack.eval_augment not in preparations:
                preparations.append(pack.eval_augment)
            append("preparation", [preparations.index(pack.eval_augment)])
            details.append(_details(pack))
        return TaskTables(
            **{name: np.concatenate([old[name], *new[name]]) for name in ARRAYS},
            preparations=tuple(preparations),
            details=tuple(details),
            parts=self._parts_with(parts, layout, base_rest),
        )

    def _parts_with(self, tasks: Sequence[TaskParts], layout: WeightLayout, base_rest: np.ndarray) -> PartTables | None:
        """Returns the parts of the tasks that are there and of more; None if none has any."""
        if self.parts is None and not any(tasks):
            return None
        return (self.parts or PartTables.empty(layout, base_rest, len(self.names))).with_tasks(tasks, layout)

    def _row_of_ones(self) -> int | None:
        """Returns the row of the masks of a task with parts and no masks; None if there is no such task."""
        for entry, row in zip(self.details, self.keep_row.tolist(), strict=True):
            if "parts" in entry and entry["mask_kind"] == "none":
                return row
        return None

    def to_json(self) -> dict[str, Any]:
        """Returns what is no array."""
        return {"preparations": list(self.preparations), "tasks": list(self.details)}

    @classmethod
    def restore(cls, arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> "TaskTables":
        """Returns the tables of which `arrays` and `to_json` returned the parts."""
        return cls(
            **{name: np.asarray(arrays[name], dtype) for name, dtype in ARRAYS.items()},
            preparations=tuple(description["preparations"]),
            details=tuple(description["tasks"]),
            parts=PartTables.restore(arrays),
        )


def family_of(pack: TaskPack) -> Family:
    """Returns the family of a task."""
    return Family(pack.problem, head_of(pack).family)


def _details(pack: TaskPack) -> dict[str, Any]:
    return {
        "task": pack.task,
        "classes": len(pack.class_names),
        "method": pack.method,
        "mask_kind": pack.mask_kind,
        "own_batch_norm": bool(pack.norm),
        **({"parts": {kind: numbers for kind, (_, numbers) in count_parts(pack.parts).items()}} if pack.parts else {}),
        "eval_augment": pack.eval_augment,
        "content_digest": pack.content_digest(),
        "created": pack.created,
        **({} if family_of(pack).of_classes else {"problem": pack.problem, "head": head_of(pack).to_json()}),
    }


def family_in(details: Mapping[str, Any]) -> Family:
    """Returns the family of a task, from what the description of an export says of it."""
    if "problem" not in details:
        return CLASSES
    return Family(details["problem"], HeadSpec.from_json(details["head"]).family)
