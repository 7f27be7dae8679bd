"""What a sequence keeps of its tasks on disk: a pack for each, the memory of a method, or a network by itself."""

import dataclasses
import lzma
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import keras

from piggyback_tf.backbones import Backbone
from piggyback_tf.file_names import MEMORY_FILE, network_name, pack_name
from piggyback_tf.files import atomic_file
from piggyback_tf.methods import Memory, Method
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.training.team import Team


class Store(Protocol):
    """The learned tasks of a sequence.

    What is read from a file, or is on its way into one, is in memory once.

    Args:
        backbone: The base of all tasks.
        folders: The folder of each task in the order of learning, by task.
    """

    # Whether networks answer with probabilities; with logits otherwise.
    probabilities: ClassVar[bool]

    def memory(self, before: str) -> Memory:
        """Returns what is kept of the tasks before one, for learning it."""

    def share_memory(self, before: str, team: Team) -> None:
        """Gives each of several machines the files of which `memory` needs the chief's; all call it."""

    def add(self, method: Method, model: keras.Model, task: str, images: Any, about: Mapping[str, Any]) -> None:
        """Takes a trained task, which can be measured then; `save` writes it.

        Args:
            method: What trained it.
            model: The trained model.
            task: The task's name.
            images: As for `Method.remember`.
            about: What `TaskPack.from_model` takes besides; other files leave it out.
        """

    def save(self, task: str, errors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Writes the file of a task that was added, whole or not at all.

        Args:
            task: The task's name.
            errors: What was measured of it, by split.

        Returns:
            What a step says of it: `"file"`, and of masks `"zeros"` and `"zeros_total"`.
        """

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        """Returns a task's network as it is kept, after the last of some tasks was learned."""

    def earlier_packs(self, before: str) -> dict[str, Path]:
        """Returns the files of the packs of the tasks before one, by task; none if tasks are not kept as packs."""

    def packs(self) -> list[TaskPack]:
        """Returns the packs of all tasks in the order of learning; none if tasks are not kept as packs."""

    def sizes(self, after: str) -> dict[str, int]:
        """Returns bytes besides the base: `"added"`, `"compressed"`, and `"learning"`, what only learning needs."""

    def remove_needless(self, after: str) -> None:
        """Deletes the files that the file of a task has made needless."""


class PackStore:
    """A task pack for each task; nothing that is learned later touches it. See `Store`.

    One bank makes the networks of all of them.
    """

    probabilities = True

    def __init__(self, backbone: Backbone, folders: Mapping[str, Path]):
        self._backbone = backbone
        self._files = {task: folder / pack_name(task) for task, folder in folders.items()}
        self._packs: dict[str, TaskPack] = {}
        self._plain_bytes: dict[str, int] = {}

    @cached_property
    def _bank(self) -> TaskBank:
        # A network that is made has tensors of its own: those in a cache would be a second copy.
        return TaskBank(self._backbone, cache_bytes=0)

    def _pack(self, task: str) -> TaskPack:
        if task not in self._packs:
            self._packs[task] = TaskPack.load(self._files[task])
        return self._packs[task]

    def memory(self, before: str) -> Memory:
        del before  # Masks know nothing of one another, unless one starts from another: see `with_start`.
        return Memory()

    def share_memory(self, before: str, team: Team) -> None:
        del before, team

    def earlier_packs(self, before: str) -> dict[str, Path]:
        return {task: self._files[task] for task in _before(self._files, before)}

    def add(self, method: Method, model: keras.Model, task: str, images: Any, about: Mapping[str, Any]) -> None:
        del method, images
        self._packs[task] = TaskPack.from_model(model, task=task, backbone=self._backbone, **about)

    def save(self, task: str, errors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        # The one of numbers that every reader of packs knows; the rest is in the run's results.
        numbers = {
            split: {name: value for name, value in found.items() if isinstance(value, int | float)}
            for split, found in errors.items()
        }
        pack = self._packs[task] = dataclasses.replace(self._packs[task], errors=numbers)
        pack.save(self._files[task])
        zeros = {"zeros": pack.zeros, "zeros_total": pack.zeros_total} if pack.masks else {}
        return {"file": self._files[task].name, **zeros}

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        del method, after
        if task not in self._bank.names:
            self._bank.add(self._pack(task))
        return self._bank.to_keras(task)

    def packs(self) -> list[TaskPack]:
        return [self._pack(task) for task in self._files]

    def sizes(self, after: str) -> dict[str, int]:
        tasks = [*_before(self._files, after), after]
        for task in tasks:
            if task not in self._plain_bytes:
                self._plain_bytes[task] = len(self._pack(task).to_bytes("bits"))
        return {
            "added": sum(self._plain_bytes[task] for task in tasks),
            "compressed": sum(self._files[task].stat().st_size for task in tasks),
            "learning": 0,
        }

    def remove_needless(self, after: str) -> None:
        del after


class MemoryStore:
    """One file with all that a method keeps, written anew after each task. See `Store`."""

    probabilities = False

    def __init__(self, backbone: Backbone, folders: Mapping[str, Path]):
        self._backbone = backbone
        self._files = {task: folder / MEMORY_FILE for task, folder in folders.items()}
        self._latest: tuple[str, Memory] = ("", Memory())

    def _memory(self, after: str) -> Memory:
        if self._latest[0] != after:
            self._latest = after, Memory.load(self._files[after])
        return self._latest[1]

    def memory(self, before: str) -> Memory:
        earlier = _before(self._files, before)
        return self._memory(earlier[-1]) if earlier else Memory()

    def share_memory(self, before: str, team: Team) -> None:
        for task in _before(self._files, before)[-1:]:
            team.share_file(self._files[task])

    def earlier_packs(self, before: str) -> dict[str, Path]:
        del before
        return {}

    def add(self, method: Method, model: keras.Model, task: str, images: Any, about: Mapping[str, Any]) -> None:
        del about
        self._latest = task, method.remember(model, self._backbone, task, images)

    def save(self, task: str, errors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        del errors
        self._memory(task).save(self._files[task])
        return {"file": self._files[task].name}

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        return type(method)(method.config, self._memory(after)).recall(self._backbone, task)

    def packs(self) -> list[TaskPack]:
        return []

    def sizes(self, after: str) -> dict[str, int]:
        memory = self._memory(after)
        compressor, compressed = lzma.LZMACompressor(preset=1), 0
        for arrays in (memory.shared, *memory.own.values()):
            for name in sorted(arrays):  # As its file has them, whether it came from there or not.
                compressed += len(compressor.compress(arrays[name].tobytes()))
        return {
            "added": memory.nbytes,
            "compressed": compressed + len(compressor.flush()),
            "learning": memory.learning_nbytes,
        }

    def remove_needless(self, after: str) -> None:
        for task in _before(self._files, after):
            self._files[task].unlink(missing_ok=True)


class NetworkStore(MemoryStore):
    """A Keras model of a task that is learned by itself, of a method that makes no packs. See `Store`."""

    def __init__(self, backbone: Backbone, folders: Mapping[str, Path]):
        super().__init__(backbone, folders)
        self._files = {task: folder / network_name(task) for task, folder in folders.items()}
        self._networks: dict[str, keras.Model] = {}

    def network(self, method: Method, task: str, after: str) -> keras.Model:
        if task not in self._networks:
            self._networks[task] = super().network(method, task, after)
        return self._networks[task]

    def save(self, task: str, errors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        del errors
        with atomic_file(self._files[task]) as temporary:
            self._networks[task].save(temporary)
        return {"file": self._files[task].name}

    def sizes(self, after: str) -> dict[str, int]:
        size = self._files[after].stat().st_size
        return {"added": size, "compressed": size, "learning": 0}


def _before(files: Mapping[str, Path], task: str) -> list[str]:
    """Returns the tasks that are learned before one."""
    tasks = list(files)
    return tasks[: tasks.index(task)]
