"""Kinds of tasks: those of one kind are answered by one graph, which takes images of one size and ends in one head."""

import dataclasses
from collections.abc import Iterable, Sequence

from piggyback_tf.backbones import Backbone
from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.parts import parts_in_words
from piggyback_tf.problems import PROBLEMS

from ..edge.piggyback_edge import ANSWERS, FIRST_SIGNATURE
from ..shared.errors import ExportError
from ..shared.packs import head_of


@dataclasses.dataclass(frozen=True)
class GraphKind:
    """Tasks that one graph answers.

    Attributes:
        head: The head that the graph ends in, with room for so many classes; with 0 it ends in what the head takes.
        image_shape: `(height, width)` of the images.
    """

    head: HeadSpec
    image_shape: tuple[int, int]

    @classmethod
    def of(cls, head: HeadSpec, backbone: Backbone) -> "GraphKind":
        """Returns the kind of tasks with a head on a base."""
        return cls(head, head.image_shape or (backbone.image_size, backbone.image_size))

    @property
    def room(self) -> int:
        """For how many classes the graph's head is; 0 if it has none."""
        return self.head.classes

    @property
    def signature(self) -> str:
        """The name of the graph's signature."""
        if self.head.is_dense:
            return FIRST_SIGNATURE
        height, width = self.image_shape
        return f"{self.head.kind}{self.head.width or ''}_{height}x{width}"

    def takes(self, pack: TaskPack) -> bool:
        """Whether a task is of this kind, if there is room for its classes."""
        return dataclasses.replace(head_of(pack), classes=self.room) == self.head


def kinds_of(packs: Iterable[TaskPack], backbone: Backbone, max_classes: int) -> list[GraphKind]:
    """Returns the kinds that tasks are of, that of dense heads first.

    Args:
        packs: The tasks.
        backbone: Their base.
        max_classes: For how many classes each head has room. With 0 a dense head stays outside of the graph, and others
            have room for the classes of the largest task.
    """
    rooms: dict[HeadSpec, int] = {}
    for spec in sorted((head_of(pack) for pack in packs), key=lambda spec: not spec.is_dense):
        family = dataclasses.replace(spec, classes=0)
        room = 0 if spec.is_dense else spec.classes
        rooms[family] = max_classes or max(room, rooms.get(family, 0))
    return [GraphKind.of(dataclasses.replace(family, classes=room), backbone) for family, room in rooms.items()]


def check_room(pack: TaskPack, kinds: Sequence[GraphKind]) -> GraphKind:
    """Returns the kind that a task is of, after checking that there is room for its classes.

    Raises:
        ExportError: If it is of none of them, or there is no room.
    """
    kind = next((kind for kind in kinds if kind.takes(pack)), None)
    if kind is None:
        height, width = pack.image_shape
        raise ExportError(
            f"Task {pack.task!r} has a head of kind {head_of(pack).kind!r} for images of {height}x{width} pixels. The "
            f"base answers by the signatures {', '.join(kind.signature for kind in kinds)}. Export a base with this "
            "task among others, without --base."
        )
    if kind.room and len(pack.class_names) > kind.room:
        raise ExportError(f"Task {pack.task!r} has {len(pack.class_names)} classes; the base has room for {kind.room}.")
    return kind


def dense_kind(backbone: Backbone, max_classes: int) -> GraphKind:
    """Returns the kind of tasks with a dense head."""
    return GraphKind.of(HeadSpec(DENSE, max_classes), backbone)


def answer_of(problem: str) -> str:
    """Returns what a device makes of what the graph of a problem's tasks ends in, one of `ANSWERS`.

    Raises:
        ExportError: If devices cannot do what it takes.
    """
    found = PROBLEMS[problem]
    answer = "argmax" if found.answers_labels else "boxes" if found.answers_boxes else found.activation
    if answer not in ANSWERS or not (found.answers_labels or found.answers_boxes or found.ranks_classes):
        raise ExportError(
            f"Tasks of the problem {problem!r} answer neither with probabilities of classes nor with label maps nor "
            "with boxes, which is what devices make of what a model returns. A TaskBank, evaluate and predict take "
            "them."
        )
    return answer


def check_answer(pack: TaskPack) -> None:
    """Checks that devices can answer for a task.

    Raises:
        ExportError: If not.
    """
    if pack.problem not in PROBLEMS.names():
        raise ExportError(
            f"Task {pack.task!r} is of the problem {pack.problem!r}, and this version of piggyback_tf knows "
            f"{', '.join(PROBLEMS.names())}."
        )
    answer_of(pack.problem)


def check_is_dense(pack: TaskPack) -> None:
    """Checks that a task has a dense head and probabilities by a softmax, for designs in which tasks are inputs.

    Raises:
        ExportError: If not.
    """
    check_answer(pack)
    if pack.parts:
        raise ExportError(
            f"Task {pack.task!r}, learned by {pack.method!r}, has {parts_in_words(pack.parts)} of its own. The designs "
            "switch and input take masks and batch norm as inputs of the model, and filters that are computed from "
            "them alone. Use --design=patch or --design=plain."
        )
    if not head_of(pack).is_dense or answer_of(pack.problem) != "softmax":
        raise ExportError(
            f"Task {pack.task!r} of the problem {pack.problem!r} has a head of kind {head_of(pack).kind!r}. The "
            "designs switch and input take the weights of one Dense layer whose softmax is the answer. Use "
            "--design=patch or --design=plain."
        )
