"""All masks of a base at once, and which of them an image asks for (SupSup; Wortsman et al., NeurIPS 2020)."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.evaluation.task_agnostic import entropy_change
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.base_fit import BaseSpec, check_fits
from piggyback_tf.packs.held_task import HeldTask
from piggyback_tf.packs.materialise import BaseTensors
from piggyback_tf.problems import head_logits
from piggyback_tf.surgery import features_with


class Superposition:
    """A network whose masks are a weighted sum of those of several tasks.

    Its kernels are `W * sum over i of alpha_i M_i`. The heads, which the paper's tasks share, are superposed likewise:
    side by side they are one layer for the classes of all tasks, of which each task's mask leaves its own columns. So
    is batch norm where tasks have their own, each of its variables. With `f` the features of the superposed network,
    the answer to an image x is

        p(alpha) = softmax([alpha_1 head_1(f(x, alpha)), ..., alpha_k head_k(f(x, alpha))])

    Args:
        backbone: The base; not changed.
        packs: The tasks, two or more.

    Raises:
        ValueError: If there are fewer tasks, or none has masks.
        PackError: If a pack does not fit the base.
    """

    def __init__(self, backbone: Backbone, packs: Sequence[TaskPack]):
        if len(packs) < 2 or not any(pack.masks for pack in packs):
            raise ValueError(
                "A superposition is one of the masks of two tasks or more. Received: "
                f"{len(packs)} tasks, {sum(bool(pack.masks) for pack in packs)} with masks."
            )
        spec = BaseSpec.of(backbone)
        for pack in packs:
            check_fits(pack.claims, spec)
        self._model = backbone.model
        variables = named_variables(backbone.model)
        changed = {path for pack in packs for path in pack.arrays.changed}
        self._places = [place for place, path in enumerate(variables) if path in changed]
        self._variables = [variable for path, variable in variables.items() if path in changed]
        self._base = BaseTensors(variables)
        self._tasks = [HeldTask.of(pack, "packed") for pack in packs]
        classes, size = sum(len(task.class_names) for task in self._tasks), backbone.image_size
        weights = [tf.TensorSpec(variable.shape, variable.dtype) for variable in self._variables]
        weights += [tf.TensorSpec([backbone.feature_dim, classes]), tf.TensorSpec([classes])]
        self._run = tf.function(
            self._forward,
            input_signature=[weights, weights, tf.TensorSpec([None, size, size, 3])],
            jit_compile=False,
        )

    def gradient(self, batches: Iterable[Any]) -> np.ndarray:
        """Returns the gradient of the entropy of p(alpha) where all alphas are 1/k, for each image.

        The paper's one-shot inference takes one step down this gradient (its section 3.3): the task is the one whose
        alpha grows most, argmax over i of `-dH / dalpha_i`.

        The weights are linear in the alphas, and so the derivative to alpha_i is that along the weights of task i. It
        is found in forward mode, at three times the cost of an answer, with one task's masks unpacked at a time.

        Args:
            batches: Batches of images `[B, S, S, 3]` in [0, 255], prepared as for evaluation; gone through once for
                each task.

        Returns:
            `dH / dalpha`, float64 `[N, k]`, in the order of the tasks; H is divided by the logarithm of the number of
            all classes.
        """
        mean = self._mean()
        return np.stack([self._derivative(number, mean, batches) for number in range(len(self._tasks))], axis=1)

    def _derivative(self, number: int, mean: list[tf.Tensor], batches: Iterable[Any]) -> np.ndarray:
        """Returns the derivative to the alpha of one task, `[N]`."""
        weights, parts = self._weights(number), []
        for images in batches:
            logits, tangents = self._run(mean, weights, tf.cast(images, tf.float32))
            parts.append(entropy_change(logits.numpy(), tangents.numpy()))
        return np.concatenate(parts)

    def _mean(self) -> list[tf.Tensor]:
        """Returns the weights where all alphas are equal."""
        count = len(self._tasks)
        total = [weight / count for weight in self._weights(0)]
        for number in range(1, count):
            total = [a + b / count for a, b in zip(total, self._weights(number), strict=True)]
        return total

    def _weights(self, number: int) -> list[tf.Tensor]:
        """Returns a task's values of those weights of the base that any of the tasks changes, and of the joint head."""
        tensors = self._base.materialise(self._tasks[number])
        classes = [len(task.class_names) for task in self._tasks]
        around = [sum(classes[:number]), sum(classes[number + 1 :])]
        head = [tf.pad(tensors.head["kernel"], [[0, 0], around]), tf.pad(tensors.head["bias"], [around])]
        return [*(tensors.weights[place] for place in self._places), *head]

    def _forward(
        self, weights: list[tf.Tensor], directions: list[tf.Tensor], images: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logits of all classes, and their derivatives where the weights move in directions."""
        with tf.autodiff.ForwardAccumulator(weights, directions) as accumulator:
            *own, kernel, bias = weights
            logits = head_logits(
                features_with(self._model, zip(self._variables, own, strict=True), images), kernel, bias
            )
        return logits, accumulator.jvp(logits)
