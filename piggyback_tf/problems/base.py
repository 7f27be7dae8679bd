"""What a problem is: all that depends on what is to be found in an image."""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.data import Operation, Original, TaskData, output_size
from piggyback_tf.problems.heads import HeadSpec
from piggyback_tf.registry import Registry
from piggyback_tf.settings.methods import MethodConfig
from piggyback_tf.targets import TARGETS


class ProblemRegistry(Registry[type["Problem"]]):
    """Problems by the names of their targets."""

    def register(self, name: str) -> Callable[[type["Problem"]], type["Problem"]]:
        """Returns a decorator that files a problem under the name of its target.

        Raises:
            ValueError: If `name` is taken, or no target.
        """
        if name not in TARGETS:
            raise ValueError(
                f"Problem {name!r} needs a target of the same name, which says what is known of it without a network; "
                "put it into TARGETS, in piggyback_tf/targets.py."
            )
        return super().register(name)


PROBLEMS = ProblemRegistry("problem")

# In `AnswerSpec.shape`: sides of the images that the task takes, and the number of its classes.
HEIGHT, WIDTH, CLASSES = "height", "width", "classes"
# In `AnswerSpec.dtype`: a text of bytes, which is a PNG file.
PNG = "png"


@dataclasses.dataclass(frozen=True)
class AnswerSpec:
    """One of the things that are answered of an image.

    Attributes:
        dtype: Name of its dtype, such as `"float32"`, or `PNG`.
        shape: Its shape: numbers, `HEIGHT`, `WIDTH` and `CLASSES`.
        missing: What stands where there is no answer, and behind the last class of a task that has fewer than others.
    """

    dtype: str
    shape: tuple[int | str, ...] = ()
    missing: float = 0


class WayBack(NamedTuple):
    """Where the pixels of an image file are in the prepared image; preparing only resized it and cut from it.

    Attributes:
        size: Height and width of the image before, int32 `[2]`.
        scale: float64 `[2]`. The point `(y, x)` of the image is at `scale * (y, x) + offset` in the prepared one; the
            middle of the first pixel is `(0.5, 0.5)`.
        offset: float64 `[2]`.
    """

    size: tf.Tensor
    scale: tf.Tensor
    offset: tf.Tensor


class Problem(abc.ABC):
    """One kind of task. A new one is a file in this folder with a subclass decorated by `PROBLEMS.register(TARGET)`.

    It says which head a task gets, what the loss is, and how answers are judged. Methods, training, packs and reports
    ask it and never ask which one it is. What is known of it without a network is in `TARGETS`, under its name.

    An answer is judged image by image: `count` makes some numbers of it, and `measured` the errors of those of any
    number of images.

    Args:
        class_names: The classes of the task.
        image_shape: `(height, width)` of its images.
    """

    # Whether the task of an image can be inferred from the answers; see `measure_task_agnostic`.
    infers_task: ClassVar[bool] = False
    # Whether an answer is a probability for each class of the image, so that classes can be ranked.
    ranks_classes: ClassVar[bool] = False
    # Whether its classes can weigh differently in the loss; see `weighted_loss`.
    weighs_classes: ClassVar[bool] = False
    # Whether answers are judged on images as they are in their source; see `count_originals`.
    judges_originals: ClassVar[bool] = False
    # Keras' activation that makes probabilities of logits.
    activation: ClassVar[str] = "softmax"
    # Whether an answer is the most probable class of each place, and not the probabilities of all.
    answers_labels: ClassVar[bool] = False
    # Whether an answer is a list of boxes, of which some were chosen among all that a head says.
    answers_boxes: ClassVar[bool] = False
    # How careful masks must be: the part of a training in which the head learns and no weight is dropped, and the part
    # of `TrainConfig.mask_trust` that a step gets. Where each place of an image is judged, little of what dropped
    # weights promise is left in other images; see docs/segmentation.md.
    head_first: ClassVar[float] = 0.0
    mask_trust: ClassVar[float] = 1.0
    # What servers call the request with image files, such as "segment". None: exports for servers have no way to ask
    # for such answers, and refuse the task. Those of classes have signatures of their own, older ones.
    signature: ClassVar[str | None] = None
    # What `answer` returns of each image, by name, and what `file_answer` does. A name ends with `_bytes` if it is
    # bytes: TensorFlow Serving's JSON then has them in base64.
    answers: ClassVar[Mapping[str, AnswerSpec]] = {}
    file_answers: ClassVar[Mapping[str, AnswerSpec]] = {}

    def __init__(self, class_names: Sequence[str], image_shape: tuple[int, int]):
        self.class_names = tuple(class_names)
        self.image_shape = image_shape

    def head(self, config: MethodConfig) -> HeadSpec:
        """Returns which head a task has: by default a dense one.

        Args:
            config: The settings of the method.
        """
        del config
        return HeadSpec.of(len(self.class_names))

    @abc.abstractmethod
    def loss(self, reduction: str) -> keras.losses.Loss:
        """Returns the loss of a model's logits.

        Args:
            reduction: As of Keras' losses.
        """

    def chance(self, labels: np.ndarray, heads: Sequence[int] = ()) -> float | None:
        """Returns the cross-entropy of guessing by what is frequent; None, by default, where that is not known.

        Args:
            labels: Those of the training images, `Source.labels`.
            heads: The numbers of classes of several heads, whose labels follow one another, if an image is judged by
                its own task's head alone; empty for one head.
        """
        del labels, heads
        return None

    def weighted_loss(self, reduction: str, class_weights: Sequence[float]) -> keras.losses.Loss:
        """Returns the loss in which classes weigh differently, where `weighs_classes`.

        Args:
            reduction: As of Keras' losses.
            class_weights: What each class weighs.
        """
        raise NotImplementedError(f"{type(self).__name__} does not weigh classes.")

    def frequencies(self, target: np.ndarray) -> np.ndarray:
        """Returns how often each class is in what is to be found in one image, int64 `[K]`, where `weighs_classes`.

        Args:
            target: As the source has it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not weigh classes.")

    @abc.abstractmethod
    def answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is answered to users, by name.

        Args:
            logits: What the task's network ends in; it is traced.
        """

    def raw_answer(self, logits: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what is answered before anything is chosen of it, by name; by default nothing is chosen.

        Args:
            logits: As of `answer`.
        """
        return self.answer(logits)

    def predicted(self, answers: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns what `TaskBank.predict` returns, the first of the answers by default.

        Args:
            answers: What `answer` returns.
        """
        return next(iter(answers.values()))

    def file_answer(self, answers: Mapping[str, tf.Tensor], way: WayBack) -> dict[str, tf.Tensor]:
        """Returns what is answered of an image that comes as a file, by name: at the size of that image.

        It is traced, and must not fail.

        Args:
            answers: What `answer` returns of the prepared image, without the dimension of the batch.
            way: Where the pixels of the file are in the prepared image.
        """
        del way
        return dict(answers)

    @abc.abstractmethod
    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns what is told of an epoch: `"error"`, a fraction, and `"cross_entropy"`, the loss without weights."""

    @abc.abstractmethod
    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the numbers of each image that its error is made of, `[B, ...]`, or objects `[B]` that hold them.

        Args:
            answers: Logits or probabilities of a batch, or what `TaskBank.predict` returns.
            targets: What is to be found, as the data have it.

        Raises:
            ValueError: If shapes do not go together, a target is out of range, or an answer is NaN.
        """

    def count_originals(
        self, answers: np.ndarray, targets: np.ndarray, originals: Iterable[Original], operations: Sequence[Operation]
    ) -> np.ndarray:
        """Does what `count` does, with the targets of the images as they were before they were prepared.

        Args:
            answers: As of `count`.
            targets: As of `count`.
            originals: What is to be found in each image as it is in its source, if the problem `judges_originals`.
            operations: How they were prepared.

        Raises:
            ValueError: As `count`.
        """
        del originals, operations
        return self.count(answers, targets)

    @abc.abstractmethod
    def measured(self, counts: np.ndarray) -> dict[str, Any]:
        """Returns what is told of some images, JSON values by name.

        The first is the error that the task is judged by, in percent, `"..._error"`, with the ends of its 95 % interval
        under the same name with `_low` and `_high`. `"images"` is how many they are.

        Args:
            counts: The numbers that `count` returned for them, `[N, ...]`.

        Raises:
            ValueError: If there are no images.
        """


def problem_of(data: TaskData, image_shape: tuple[int, int]) -> Problem:
    """Returns the problem of a task's data.

    Args:
        data: The data.
        image_shape: `(height, width)` of the images after the augmentation.
    """
    return PROBLEMS[data.target](data.class_names, image_shape)


def image_shape_of(data: TaskData, augment: str, image_size: int) -> tuple[int, int]:
    """Returns height and width of a task's images: what the augmentation gives, if they have a size of their own.

    Args:
        data: The data.
        augment: The augmentation of evaluation.
        image_size: The size that the base was built for.
    """
    own = output_size(augment) if TARGETS[data.target].own_size else None
    return own or (image_size, image_size)
