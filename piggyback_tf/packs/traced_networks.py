"""From images to answers: a traced function for each kind of task, which all tasks of that kind share."""

import threading
from collections.abc import Callable, Sequence

import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.foreign_text import shown
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs.base_fit import check_head_shapes
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.held_task import HeldTask
from piggyback_tf.packs.materialise import BaseTensors, TaskTensors
from piggyback_tf.problems import PROBLEMS, HeadNetwork, Problem


class TracedNetworks:
    """Answers images for tasks with one base. Tasks of one problem and one kind of head share a trace.

    Args:
        backbone: The base; it is read and never written.
        base: Its tensors.
    """

    def __init__(self, backbone: Backbone, base: BaseTensors):
        self._backbone, self._base = backbone, base
        self._variables = list(named_variables(backbone.model).values())
        self._heads: dict[HeadSpec, HeadNetwork] = {}
        self._functions: dict[tuple[str, HeadSpec], tf.types.experimental.PolymorphicFunction] = {}
        self._lock = threading.Lock()

    def prepare(self, problem: str, spec: HeadSpec) -> None:
        """Traces the network of a kind of task, unless it is, and runs it on a black image: no prediction has to wait.

        Raises:
            ValueError: If the base cannot take the head.
        """
        head = self._head(spec)
        if (problem, head.spec) in self._functions:
            return
        height, width = head.image_shape
        shapes = head.head_shapes or {"kernel": (self._backbone.feature_dim, 2), "bias": (2,)}
        zeros = {name: tf.zeros(shape) for name, shape in shapes.items()}
        self._function(problem, spec)(list(self._base.tensors.values()), zeros, tf.zeros([1, height, width, 3]))

    def check(self, task: HeldTask) -> None:
        """Checks that there can be answers for a task, whose arrays of the base were found to fit.

        Raises:
            PackError: If the base cannot take its head, or what it finds is not known here.
        """
        name = f"Task {shown(task.name)}"
        if task.problem not in PROBLEMS.names():
            raise PackError(
                f"{name} is of the problem {shown(task.problem)}, and this version of piggyback_tf knows "
                f"{', '.join(PROBLEMS.names())}."
            )
        try:
            expected = self._head(task.head_spec).head_shapes
        except ValueError as error:
            raise PackError(f"{name} has a head that this base cannot take: {error}") from error
        if expected is not None:
            check_head_shapes(dict(task.layout.head), expected, f"The head of {name[0].lower()}{name[1:]}")

    def answer(self, task: HeldTask, tensors: TaskTensors, images: tf.Tensor) -> tf.Tensor:
        """Returns what the task's problem makes of its answers for `TaskBank.predict`.

        Args:
            task: The task.
            tensors: Its tensors.
            images: float32 `[B, H, W, 3]` of the task's size, in [0, 255].
        """
        return self._function(task.problem, task.head_spec)(tensors.weights, tensors.head, images)

    @property
    def traces(self) -> int:
        """How often a network was traced."""
        return sum(function.experimental_get_tracing_count() for function in self._functions.values())

    def _head(self, spec: HeadSpec) -> HeadNetwork:
        spec = spec.family
        with self._lock:
            if spec not in self._heads:
                self._heads[spec] = HeadNetwork(self._backbone, spec)
            return self._heads[spec]

    def _function(self, problem: str, spec: HeadSpec) -> Callable[..., tf.Tensor]:
        head = self._head(spec)
        key = problem, head.spec
        with self._lock:
            if key not in self._functions:
                self._functions[key] = self._trace(PROBLEMS[problem]((), head.image_shape), head)
            return self._functions[key]

    def _trace(self, problem: Problem, head: HeadNetwork) -> Callable[..., tf.Tensor]:
        # The number of features is known and that of classes is not: one trace serves every task and batch size.
        shapes = head.head_shapes or {"kernel": (self._backbone.feature_dim, None), "bias": (None,)}

        def answer(weights: Sequence[tf.Tensor], own: dict[str, tf.Tensor], images: tf.Tensor) -> tf.Tensor:
            return problem.predicted(problem.answer(head.logits(weights, own, images)))

        return tf.function(
            answer,
            input_signature=[
                [tf.TensorSpec(v.shape, v.dtype) for v in self._variables],
                {name: tf.TensorSpec(shape, tf.float32) for name, shape in shapes.items()},
                tf.TensorSpec([None, *head.image_shape, 3], tf.float32),
            ],
            # XLA made MobileNetV2 many times slower on CPUs.
            jit_compile=False,
        )
