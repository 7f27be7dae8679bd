"""TaskBank: one frozen base in memory, and many tasks on it."""

import dataclasses
import math
import os
import threading
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_layers, named_variables
from piggyback_tf.packs.pack import PackError, TaskPack
from piggyback_tf.registry import unknown_name_message


class TaskBank:
    """Holds one base and the packs of many tasks, and predicts with any of them.

    In memory are the base, the masks as packed bits, batch norm and heads. The masked kernels of a task exist while
    a call of `predict` runs and no longer. The base's variables are read and never written, and which task is meant
    is an argument of each call, so that calls from several threads, for one task or several, do not meet.

    Args:
        backbone: The base. It must not change while the bank lives: its hash is taken once, here.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self._hash = backbone.hash
        self._variables = named_variables(backbone.model)
        self._norm_layers = {
            path for path, layer in named_layers(backbone.model) if isinstance(layer, keras.layers.BatchNormalization)
        }
        self._packs: dict[str, TaskPack] = {}
        self._lock = threading.Lock()
        # The number of features is known and that of classes is not: one trace serves every task and batch size.
        features, size = backbone.feature_dim, backbone.image_size
        self._run = tf.function(
            self._forward,
            input_signature=[
                [tf.TensorSpec(v.shape, v.dtype) for v in self._variables.values()],
                tf.TensorSpec([features, None], tf.float32),
                tf.TensorSpec([None], tf.float32),
                tf.TensorSpec([None, size, size, 3], tf.float32),
            ],
            # XLA made MobileNetV2 many times slower on CPUs.
            jit_compile=False,
        )

    @property
    def names(self) -> list[str]:
        """The names of the tasks in the order in which they were added."""
        return list(self._packs)

    def add(self, pack: TaskPack | str | os.PathLike) -> "TaskBank":
        """Adds a task.

        Args:
            pack: The task's pack or its file.

        Returns:
            The bank itself, so that `TaskBank(backbone).add(pack)` gives a bank.

        Raises:
            PackError: If the pack is for another base, does not fit it, or a task of its name is in the bank.
        """
        if not isinstance(pack, TaskPack):
            pack = TaskPack.load(pack)
        pack.check()
        self._check_fits(pack)
        # The bank's own copies: what the caller does to the pack afterwards does not reach the bank.
        pack = dataclasses.replace(
            pack,
            masks={path: dataclasses.replace(m, packed=m.packed.copy()) for path, m in pack.masks.items()},
            norm={path: value.copy() for path, value in pack.norm.items()},
            head={name: value.copy() for name, value in pack.head.items()},
        )
        with self._lock:
            if pack.task in self._packs:
                raise PackError(f"The bank has a task named {pack.task!r} already; remove it first.")
            # A new dict each time, so that threads that iterate over the old one are not disturbed.
            self._packs = {**self._packs, pack.task: pack}
        return self

    def remove(self, name: str) -> None:
        """Removes a task; calls of `predict` that have started on it end well.

        Raises:
            ValueError: If the bank has no such task.
        """
        with self._lock:
            self._find(name)
            self._packs = {key: pack for key, pack in self._packs.items() if key != name}

    def info(self, name: str) -> dict[str, Any]:
        """Returns what is known about a task: classes, method, errors, zeros, and the bytes it holds in memory.

        Raises:
            ValueError: If the bank has no such task.
        """
        pack = self._find(name)
        return {
            "task": pack.task,
            "class_names": list(pack.class_names),
            "method": pack.method,
            "mask_kind": pack.mask_kind,
            "errors": {split: dict(errors) for split, errors in pack.errors.items()},
            "zeros": pack.zeros_total,
            "eval_augment": pack.eval_augment,
            "bytes": _held_bytes(pack),
        }

    @property
    def nbytes(self) -> dict[str, int]:
        """The bytes of the arrays in memory: of the base, and of all tasks together."""
        base = sum(
            math.prod(v.shape) * tf.as_dtype(keras.backend.standardize_dtype(v.dtype)).size
            for v in self._variables.values()
        )
        return {"base": base, "tasks": sum(_held_bytes(pack) for pack in self._packs.values())}

    def predict(self, images: Any, task: str, batch_size: int = 32) -> np.ndarray:
        """Returns the probabilities of a task's classes.

        Args:
            images: Array `[N, S, S, 3]` of RGB images of the base's size S, values in [0, 255], integer or
                floating point.
            task: The name of the task.
            batch_size: Images that go through the network at once.

        Returns:
            Float32 array `[N, C]`, softmax over the classes of the task.

        Raises:
            ValueError: If the bank has no such task, or the images are not as they must be.
        """
        pack = self._find(task)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: {batch_size}.")
        images = self._check_images(images)
        if not len(images):
            return np.zeros([0, len(pack.class_names)], np.float32)
        weights = self._task_weights(pack)
        kernel, bias = tf.constant(pack.head["kernel"]), tf.constant(pack.head["bias"])
        starts = range(0, len(images), batch_size)
        return np.concatenate(
            [
                self._run(weights, kernel, bias, tf.constant(images[i : i + batch_size], tf.float32)).numpy()
                for i in starts
            ]
        )

    def _forward(self, weights: list[tf.Tensor], kernel: tf.Tensor, bias: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        # Within the scope Keras reads these tensors in the place of the variables, in this thread only.
        with keras.StatelessScope(state_mapping=list(zip(self._variables.values(), weights, strict=True))):
            features = self.backbone.model(images, training=False)
        return tf.nn.softmax(tf.nn.bias_add(tf.matmul(tf.cast(features, tf.float32), kernel), bias))

    def _task_weights(self, pack: TaskPack) -> list[tf.Tensor]:
        """Returns the value of every variable of the base for a task; what the task leaves alone is not copied."""
        weights = []
        for path, variable in self._variables.items():
            value = tf.convert_to_tensor(variable.value)
            if path in pack.norm:
                value = tf.constant(pack.norm[path], value.dtype)
            elif path in pack.masks:
                mask = tf.constant(pack.mask(path))
                if pack.mask_kind == "ternary":
                    # +0.0 where the mask is 0, as in training, which a product would not give.
                    value = tf.where(mask == 0, tf.zeros_like(value), value * tf.cast(mask, value.dtype))
                else:
                    value = tf.where(mask != 0, value, tf.zeros_like(value))
            weights.append(value)
        return weights

    def _find(self, name: str) -> TaskPack:
        packs = self._packs
        if name not in packs:
            raise ValueError(unknown_name_message("task", str(name), list(packs)))
        return packs[name]

    def _check_fits(self, pack: TaskPack) -> None:
        name = self.backbone.name
        if pack.base_hash != self._hash:
            raise PackError(
                f"Task {pack.task!r} was trained on another base: {pack.base_name!r} with weights "
                f"{pack.base_weights!r} and hash {pack.base_hash[:12]}..., and this is {name!r} with weights "
                f"{self.backbone.weights!r} and hash {self._hash[:12]}..."
            )
        if pack.image_size != self.backbone.image_size:
            raise PackError(
                f"Task {pack.task!r} takes images of {pack.image_size} pixels, and this base was built for "
                f"{self.backbone.image_size}. Load it with image_size={pack.image_size}."
            )
        found = {path: mask.shape for path, mask in pack.masks.items()}
        found |= {path: value.shape for path, value in pack.norm.items()}
        for path, shape in found.items():
            variable = self._variables.get(path)
            if variable is None:
                raise PackError(f"Task {pack.task!r} has a mask or batch norm for {path!r}, which {name!r} lacks.")
            if path in pack.norm and (path in pack.masks or path.rpartition("/")[0] not in self._norm_layers):
                raise PackError(f"Task {pack.task!r} brings batch norm for {path!r}, which is none in {name!r}.")
            if tuple(variable.shape) != tuple(shape):
                raise PackError(
                    f"Task {pack.task!r} has a mask or batch norm of shape {list(shape)} for {path!r}, which has shape "
                    f"{list(variable.shape)} in {name!r}."
                )
        if pack.head["kernel"].shape[0] != self.backbone.feature_dim:
            raise PackError(
                f"The head of task {pack.task!r} takes {pack.head['kernel'].shape[0]} features, and {name!r} gives "
                f"{self.backbone.feature_dim}."
            )

    def _check_images(self, images: Any) -> np.ndarray:
        images, size = np.asarray(images), self.backbone.image_size
        if images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise ValueError(f"Images must be an array [N, {size}, {size}, 3]. Received: shape {list(images.shape)}.")
        if not (np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)):
            raise ValueError(f"Images must hold integers or floating point numbers. Received: {images.dtype}.")
        if images.dtype != np.uint8 and images.size:
            low, high = images.min(), images.max()
            if not (low >= 0 and high <= 255):  # NaN compares as false.
                raise ValueError(f"Images must hold values in [0, 255]. Received: {low} to {high}.")
        return images


def _held_bytes(pack: TaskPack) -> int:
    arrays = [mask.packed for mask in pack.masks.values()] + list(pack.norm.values()) + list(pack.head.values())
    return sum(array.nbytes for array in arrays)
