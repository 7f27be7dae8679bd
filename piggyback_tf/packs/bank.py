"""TaskBank: one frozen base in memory, and many tasks on it."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data.pixel_range import as_images
from piggyback_tf.file_names import PACK_SUFFIX
from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.packs.base_fit import BaseSpec, check_fits
from piggyback_tf.packs.compare import MaskOverlap, compare_bits
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.find import packs_in
from piggyback_tf.packs.held_task import HOLDS, HeldTask
from piggyback_tf.packs.kernel_cache import KernelCache
from piggyback_tf.packs.materialise import BaseTensors, TaskTensors
from piggyback_tf.packs.pack import TaskPack
from piggyback_tf.packs.to_keras import keras_model
from piggyback_tf.packs.traced_networks import TracedNetworks
from piggyback_tf.problems import PROBLEMS
from piggyback_tf.registry import unknown_name_message
from piggyback_tf.settings.records import check_choice, check_integer
from piggyback_tf.targets import USUAL
from piggyback_tf.top_k import best_classes

# Thirty tasks of MobileNetV2, or two of ResNet-50.
DEFAULT_CACHE_BYTES = 256 * 2**20


class TaskBank:
    """Holds one base and the packs of many tasks, and predicts with any of them.

    In memory are the base, and for each task its masks as bits, batch norm and head. Masked kernels are made when a
    task is asked for; those of the tasks used last stay in a cache. The base's variables are read and never written,
    and which task is meant is an argument of each call, so that calls from several threads, for one task or several,
    do not meet: an answer depends on nothing but the call's own arguments and the task as it was when the call began.

    Args:
        backbone: The base. It must not change while the bank lives: its hash is taken here, and the network is traced
            and run once, so that the first prediction takes no longer than the next.
        cache_bytes: Limit of the cache, for masked kernels, batch norm and heads that are ready for use; a task that
            takes more by itself is made anew for each call. A call also holds the task that it is at, whether the
            cache keeps that or not, and the memory of the task that was dropped last is kept for the next: with t
            threads up to `cache_bytes` and t + 1 tasks are in memory.
        hold: How masks are kept: `"packed"`, a bit a weight (two if ternary), or `"compressed"` as in a file. That is
            smaller, and has to be coded when a task is added and decoded whenever it comes into the cache.

    Raises:
        ValueError: If an argument is not one of these.
    """

    def __init__(self, backbone: Backbone, *, cache_bytes: int = DEFAULT_CACHE_BYTES, hold: str = "packed"):
        check_choice("hold", hold, HOLDS)
        if not isinstance(backbone, Backbone):
            raise ValueError(
                "backbone must be a Backbone; Backbone.from_model makes one of a Keras model. "
                f"Received: {type(backbone).__name__}."
            )
        self.backbone = backbone
        self._hold = hold
        self._spec = BaseSpec.of(backbone)
        variables = named_variables(backbone.model)
        self._base = BaseTensors(variables)
        self._cache: KernelCache[HeldTask, TaskTensors] = KernelCache(cache_bytes)
        self._tasks: dict[str, HeldTask] = {}
        self._lock = threading.Lock()
        self._networks = TracedNetworks(backbone, self._base)
        self._networks.prepare(USUAL, HeadSpec(DENSE, 2))

    @property
    def names(self) -> list[str]:
        """The names of the tasks in the order in which they were added."""
        return list(self._tasks)

    def add(self, source: TaskPack | str | os.PathLike) -> "TaskBank":
        """Adds a task, or all tasks of a folder.

        Args:
            source: A task's pack, its file or URL, or a folder, of which every `*.task.safetensors` is added: all,
                or none if anything is wrong with one.

        Returns:
            The bank itself, so that `TaskBank(backbone).add(pack)` gives a bank.

        Raises:
            PackError: If a pack is for another base, does not fit it, or a task of its name is in the bank or twice in
                the folder; if a file is no pack, or the folder has none.
            ValueError: If `source` is none of these.
            OSError: If a file cannot be read.
        """
        added: dict[str, HeldTask] = {}
        for pack in self._packs(source):
            if pack.task in added:
                raise PackError(f"The folder {str(source)!r} has two packs of a task named {pack.task!r}.")
            task = added[pack.task] = HeldTask.of(pack, self._hold)
            self._networks.check(task)
            self._networks.prepare(task.problem, task.head_spec)
        with self._lock:
            for name in added:
                if name in self._tasks:
                    raise PackError(f"The bank has a task named {name!r} already; remove it first.")
            # A new dict each time, so that threads that read the old one are not disturbed.
            self._tasks = {**self._tasks, **added}
        return self

    def remove(self, name: str) -> None:
        """Removes a task; calls of `predict` that have started on it end well.

        Raises:
            ValueError: If the bank has no such task.
        """
        with self._lock:
            task = self._find(name)
            self._tasks = {key: held for key, held in self._tasks.items() if key != name}
        self._cache.discard(task)

    def info(self, name: str) -> dict[str, Any]:
        """Returns what is known about a task: classes, method, errors, zeros, and the bytes it holds in memory.

        Raises:
            ValueError: If the bank has no such task.
        """
        return self._find(name).info()

    @property
    def nbytes(self) -> dict[str, int]:
        """The bytes of the arrays in memory: of the base, of all tasks together, and in the cache now."""
        return {
            "base": self._base.nbytes,
            "tasks": sum(task.nbytes for task in self._tasks.values()),
            "cache": self._cache.nbytes,
        }

    def compare(self, a: str, b: str) -> dict[str, MaskOverlap]:
        """Compares the masks of two tasks.

        Returns:
            The overlap by the weight's canonical path; see `compare_masks`.

        Raises:
            ValueError: If the bank has no such task.
        """
        first, second = self._find_all([a, b])
        return compare_bits(first.arrays().masks, second.arrays().masks)

    def predict(self, images: Any, task: str | Sequence[str], batch_size: int = 32) -> "np.ndarray | list[np.ndarray]":
        """Returns the answers of a task: the probabilities of its classes, the class of each pixel, or boxes.

        Args:
            images: Array `[N, H, W, 3]` of RGB images of the task's size, which is that of the base but for tasks of
                pixels and of boxes; values in [0, 255], integer or floating point. Floating point numbers that end at 1
                are refused, as they look scaled to [0, 1].
            task: The name of the task, or N names, one for each image. Images of one task then go through the network
                together, in their order.
            batch_size: Images that go through the network at once.

        Returns:
            Softmax over the classes of the task, or, of a task of any number of classes, the probability of each by
            itself, float32: an array `[N, C]` for one name; for N names a list of N arrays, each `[C]` with C of the
            image's task, in the order of the images. Of a task of pixels label maps, uint8 `[N, H, W]` or `[H, W]`;
            `data.at_own_size` makes those of the images before they were prepared. Of a task of boxes float32
            `[N, 100, 6]` or `[100, 6]`, the surest first: ymin, xmin, ymax, xmax, the number of the class, -1 where
            there is no box, and the score; `data.boxes_at_own_size` is for them.

        Raises:
            ValueError: If the bank has no such task, there is not one name for each image, the tasks take images of
                several sizes, or the images or `batch_size` are not as they must be.
        """
        return self._predict(images, self._tasks_of(task), batch_size)

    def top_k(
        self, images: Any, task: str | Sequence[str], k: int = 5, batch_size: int = 32
    ) -> list[list[tuple[str, float]]]:
        """Returns the most probable classes of each image.

        Args:
            images: As in `predict`.
            task: As in `predict`.
            k: How many classes; all of them if the task has fewer.
            batch_size: As in `predict`.

        Returns:
            For each image a list of class name and probability, the most probable first; of equal ones the first in
            the order of the task's classes.

        Raises:
            ValueError: As in `predict`, or if k is no integer of at least 1.
        """
        check_integer("k", k, 1)
        tasks = self._tasks_of(task)
        for held in [tasks] if isinstance(tasks, HeldTask) else tasks:
            if not PROBLEMS[held.problem].ranks_classes:
                raise ValueError(f"Task {held.name!r} finds no class of an image; ask for its answers by predict.")
        rows = self._predict(images, tasks, batch_size)
        if isinstance(tasks, HeldTask):
            tasks = [tasks] * len(rows)
        return [
            [(held.class_names[index], float(row[index])) for index in best_classes(row, k)]
            for held, row in zip(tasks, rows, strict=True)
        ]

    def to_keras(self, name: str) -> keras.Model:
        """Returns a task as a plain Keras model, which loads without this package.

        Args:
            name: The name of the task.

        Returns:
            A functional model with weights of its own, dropped ones being 0, from images `[B, S, S, 3]` in [0, 255]
            (scaling is a part of it) to float32 probabilities `[B, C]`, or `[B, H, W, C]` of a task of pixels; of boxes
            to what their head says, `[B, h, w, C + 4]`. It is made of the base's kinds of layers, and those of the
            head; those of `keras` load anywhere.

        Raises:
            ValueError: If the bank has no such task.
        """
        task = self._find(name)
        tensors = self._tensors(task)
        weights = {path: tensor.numpy() for path, tensor in zip(self._base.tensors, tensors.weights, strict=True)}
        head = {name: tensor.numpy() for name, tensor in tensors.head.items()}
        return keras_model(self.backbone, task.head_spec, PROBLEMS[task.problem].activation, weights, head)

    def _predict(
        self, images: Any, tasks: HeldTask | list[HeldTask], batch_size: int
    ) -> "np.ndarray | list[np.ndarray]":
        check_integer("batch_size", batch_size, 1)
        shapes = {self._shape_of(task) for task in ([tasks] if isinstance(tasks, HeldTask) else tasks)}
        if len(shapes) > 1:
            sizes = " and ".join(f"{height}x{width}" for height, width in sorted(shapes))
            raise ValueError(f"These tasks take images of {sizes} pixels; ask for those of each size by themselves.")
        images = as_images(images, shapes.pop() if shapes else (self.backbone.image_size,) * 2)
        if isinstance(tasks, HeldTask):
            return self._predict_one(images, tasks, batch_size)
        if len(tasks) != len(images):
            raise ValueError(
                f"task must be one name, or one for each image. Received: {len(tasks)} names for {len(images)} images."
            )
        groups: dict[HeldTask, list[int]] = {}
        for index, task in enumerate(tasks):
            groups.setdefault(task, []).append(index)
        answers: dict[int, np.ndarray] = {}
        for task, indices in groups.items():
            answers.update(zip(indices, self._predict_one(images[indices], task, batch_size), strict=True))
        return [answers[index] for index in range(len(images))]

    def _predict_one(self, images: np.ndarray, task: HeldTask, batch_size: int) -> np.ndarray:
        if not len(images):  # Not every network runs on no images.
            return self._predict_one(np.zeros([1, *images.shape[1:]], np.uint8), task, 1)[:0]
        tensors = self._tensors(task)
        parts = (tf.constant(images[i : i + batch_size], tf.float32) for i in range(0, len(images), batch_size))
        return np.concatenate([self._networks.answer(task, tensors, part).numpy() for part in parts])

    def _shape_of(self, task: HeldTask) -> tuple[int, int]:
        return task.head_spec.image_shape or (self.backbone.image_size, self.backbone.image_size)

    def _tensors(self, task: HeldTask) -> TaskTensors:
        """Returns the tensors of a task, from the cache or made now."""
        tensors = self._cache.get(task)
        if tensors is None:
            tensors = self._base.materialise(task)
            self._cache.put(task, tensors)
            # Removed meanwhile? Then `remove` may have been here before them. If it comes later, it drops them itself.
            if self._tasks.get(task.name) is not task:
                self._cache.discard(task)
        return tensors

    def _tasks_of(self, task: str | Sequence[str]) -> HeldTask | list[HeldTask]:
        if isinstance(task, str):
            return self._find(task)
        if not isinstance(task, Iterable):
            raise ValueError(f"task must be one name, or one for each image. Received: {task!r}.")
        return self._find_all(list(task))

    def _find(self, name: str) -> HeldTask:
        return self._find_all([name])[0]

    def _find_all(self, names: Sequence[str]) -> list[HeldTask]:
        # All from one state of the bank.
        tasks = self._tasks
        for name in names:
            # Asked of a dict, what cannot be hashed would be another error.
            if not isinstance(name, str) or name not in tasks:
                raise ValueError(unknown_name_message("task", str(name), list(tasks)))
        return [tasks[name] for name in names]

    def _packs(self, source: TaskPack | str | os.PathLike) -> Iterator[TaskPack]:
        """Yields the pack itself, that of a file, or those of a folder, checked and one in memory at a time."""
        if isinstance(source, TaskPack):
            # It may have been changed since it was made.
            source.check()
            check_fits(source.claims, self._spec)
            yield source
            return
        if not isinstance(source, str | os.PathLike):
            raise ValueError(f"A task is added as a TaskPack, a file, a URL or a folder. Received: {source!r}.")
        files: Sequence[str | os.PathLike] = [source]
        if Path(source).is_dir():
            files = packs_in(source)
            if not files:
                raise PackError(f"The folder {os.fspath(source)!r} has no file *{PACK_SUFFIX}.")
        for file in files:
            yield TaskPack.load(file, self._spec)
