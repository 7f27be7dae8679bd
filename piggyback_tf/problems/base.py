"""What a problem is: all that depends on what is to be found in an image."""

import abc
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.data import Operation, TaskData
from piggyback_tf.problems.heads import HeadSpec
from piggyback_tf.registry import Registry
from piggyback_tf.settings.methods import MethodConfig

# By `TaskData.target`.
PROBLEMS: Registry[type["Problem"]] = Registry("problem")


class Problem(abc.ABC):
    """One kind of task. A new one is a file in this folder with a subclass decorated by `PROBLEMS.register(TARGET)`.

    It says which head a task gets, what the loss is, and how answers are judged. Methods, training, packs and reports
    ask it and never ask which one it is.

    An answer is judged image by image: `count` makes some numbers of it, and `measured` the errors of those of any
    number of images.

    Args:
        class_names: The classes of the task.
        image_shape: `(height, width)` of its images.
    """

    # Whether the task of an image can be inferred from the answers; see `measure_task_agnostic`.
    infers_task: ClassVar[bool] = False
    # Whether its classes can weigh differently in the loss; see `weighted_loss`.
    weighs_classes: ClassVar[bool] = False
    # Keras' activation that makes probabilities of logits.
    activation: ClassVar[str] = "softmax"

    def __init__(self, class_names: Sequence[str], image_shape: tuple[int, int]):
        self.class_names = tuple(class_names)
        self.image_shape = image_shape

    @abc.abstractmethod
    def head(self, config: MethodConfig) -> HeadSpec:
        """Returns which head a task has.

        Args:
            config: The settings of the method.
        """

    @abc.abstractmethod
    def loss(self, reduction: str) -> keras.losses.Loss:
        """Returns the loss of a model's logits.

        Args:
            reduction: As of Keras' losses.
        """

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
        """Returns what is answered to users, by name; the first is what `TaskBank.predict` returns.

        Args:
            logits: What the task's network ends in; it is traced.
        """

    @abc.abstractmethod
    def metrics(self) -> list[keras.metrics.Metric]:
        """Returns what is told of an epoch: `"error"`, a fraction, and `"cross_entropy"`, the loss without weights."""

    @abc.abstractmethod
    def count(self, answers: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the numbers of each image that its error is made of, `[B, ...]`.

        Args:
            answers: Logits or probabilities of a batch, or what `TaskBank.predict` returns.
            targets: What is to be found, as the data have it.

        Raises:
            ValueError: If shapes do not go together, a target is out of range, or an answer is NaN.
        """

    def count_originals(
        self, answers: np.ndarray, targets: np.ndarray, originals: Iterable[np.ndarray], operations: Sequence[Operation]
    ) -> np.ndarray:
        """Does what `count` does, with the targets of the images as they were before they were prepared.

        Args:
            answers: As of `count`.
            targets: As of `count`.
            originals: What the source has of each image of the batch; read only where the targets depend on that.
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
