"""What a sequence keeps of its tasks on disk: a pack for each, or the memory of a method."""

import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import keras

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods import Memory, Method
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.packs.pack import PACK_SUFFIX

MEMORY_FILE = "memory.safetensors"


class Store(Protocol):
    """The learned tasks of a sequence.

    Args:
        backbone: The base of all tasks.
        folders: The folder of each task in the order of learning, by task.
    """

    # Whether networks answer with probabilities; with logits otherwise.
    probabilities: ClassVar[bool]

    def memory(self, before: str) -> Memory:
        """Returns what is kept of the tasks before one, for learning it."""

    def add(self, method: Method, model: keras.Model, task: str, images: Any, pack: Mapping[str, Any]) -> None:
        """Writes a trained task.

        Args:
            method: What trained it.
            model: The trained model.
            task: The task's name.
            images: As for `Method.remember`.
            pack: What `TaskPack.from_model` takes besides; a memory leaves it out.
        """

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        """Returns a task's network as the files have it, after the last of some tasks was learned."""

    def earlier_packs(self, before: str) -> dict[str, Path]:
        """Returns the files of the packs of the tasks before one, by task; none if tasks are not kept as packs."""

    def packs(self) -> list[TaskPack]:
        """Returns the packs of all tasks in the order of learning; none if tasks are not kept as packs."""

    def sizes(self, after: str) -> dict[str, int]:
        """Returns bytes besides the base: `"added"`, `"compressed"`, and `"learning"`, what only learning needs."""

    def forget(self, before: str) -> None:
        """Deletes what the files of a task have made needless."""


class PackStore:
    """A task pack for each task; nothing that is learned later touches it. See `Store`."""

    probabilities = True

    def __init__(self, backbone: Backbone, folders: Mapping[str, Path]):
        self._backbone = backbone
        self._files = {task: folder / f"{task}{PACK_SUFFIX}" for task, folder in folders.items()}

    def memory(self, before: str) -> Memory:
        del before  # Masks know nothing of one another, unless one starts from another: see `with_start`.
        return Memory()

    def earlier_packs(self, before: str) -> dict[str, Path]:
        tasks = list(self._files)
        return {task: self._files[task] for task in tasks[: tasks.index(before)]}

    def add(self, method: Method, model: keras.Model, task: str, images: Any, pack: Mapping[str, Any]) -> None:
        del method, images
        TaskPack.from_model(model, task=task, backbone=self._backbone, **pack).save(self._files[task])

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        del method, after
        return TaskBank(self._backbone).add(self._files[task]).to_keras(task)

    def packs(self) -> list[TaskPack]:
        return [TaskPack.load(path) for path in self._files.values()]

    def sizes(self, after: str) -> dict[str, int]:
        tasks = list(self._files)
        packs = [self._files[task] for task in tasks[: tasks.index(after) + 1]]
        return {
            "added": sum(len(TaskPack.load(path).to_bytes("bits")) for path in packs),
            "compressed": sum(path.stat().st_size for path in packs),
            "learning": 0,
        }

    def forget(self, before: str) -> None:
        del before


class MemoryStore:
    """One file with all that a method keeps, written anew after each task. See `Store`."""

    probabilities = False

    def __init__(self, backbone: Backbone, folders: Mapping[str, Path]):
        self._backbone = backbone
        self._files = {task: folder / MEMORY_FILE for task, folder in folders.items()}

    def memory(self, before: str) -> Memory:
        earlier = self._earlier(before)
        return Memory.load(self._files[earlier[-1]]) if earlier else Memory()

    def earlier_packs(self, before: str) -> dict[str, Path]:
        del before
        return {}

    def add(self, method: Method, model: keras.Model, task: str, images: Any, pack: Mapping[str, Any]) -> None:
        del pack
        method.remember(model, self._backbone, task, images).save(self._files[task])

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        return type(method)(method.config, Memory.load(self._files[after])).recall(self._backbone, task)

    def packs(self) -> list[TaskPack]:
        return []

    def sizes(self, after: str) -> dict[str, int]:
        memory = Memory.load(self._files[after])
        compressor, compressed = lzma.LZMACompressor(preset=1), 0
        for arrays in (memory.shared, *memory.own.values()):
            for array in arrays.values():
                compressed += len(compressor.compress(array.tobytes()))
        return {
            "added": memory.nbytes,
            "compressed": compressed + len(compressor.flush()),
            "learning": memory.learning_nbytes,
        }

    def forget(self, before: str) -> None:
        for task in self._earlier(before):
            self._files[task].unlink(missing_ok=True)

    def _earlier(self, task: str) -> list[str]:
        tasks = list(self._files)
        return tasks[: tasks.index(task)]
