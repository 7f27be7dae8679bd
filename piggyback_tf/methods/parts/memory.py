"""What a method keeps of the tasks that it has learned, and its file."""

import dataclasses
import json
import os
from collections.abc import Mapping

import numpy as np
from safetensors import SafetensorError, safe_open

from piggyback_tf.files import write_arrays
from piggyback_tf.problems import HeadSpec, is_head

Arrays = Mapping[str, np.ndarray]


def split_off_head(arrays: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the arrays of a network's head, and the others."""
    head = {path: array for path, array in arrays.items() if is_head(path)}
    return head, {path: array for path, array in arrays.items() if path not in head}


@dataclasses.dataclass(frozen=True, eq=False)
class Memory:
    """All that a method needs besides the base to answer for the tasks it has learned, and to learn the next one.

    Attributes:
        own: What belongs to one task alone, arrays by name, by task in the order of learning. Of a dense head
            `"head/kernel"`, `[F, C]`, and `"head/bias"`, `[C]`, are there.
        shared: What all tasks use, such as weights that replace the base's.
        learning: What is needed only to learn further tasks, such as the Fisher information.
        heads: Which head each task has, where it is not a dense one.
    """

    own: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)
    shared: Arrays = dataclasses.field(default_factory=dict)
    learning: Arrays = dataclasses.field(default_factory=dict)
    heads: Mapping[str, HeadSpec] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks in the order of learning."""
        return tuple(self.own)

    @property
    def nbytes(self) -> int:
        """Bytes of all that answering needs, uncompressed."""
        return sum(array.nbytes for arrays in (self.shared, *self.own.values()) for array in arrays.values())

    @property
    def learning_nbytes(self) -> int:
        """Bytes of what only learning needs, uncompressed."""
        return sum(array.nbytes for array in self.learning.values())

    def classes(self, task: str) -> int:
        """Returns how many classes a task has."""
        return int(self.of(task)["head/bias"].size)

    def head(self, task: str) -> HeadSpec:
        """Returns which head a task has."""
        return self.heads.get(task) or HeadSpec.of(self.classes(task))

    def of(self, task: str) -> Arrays:
        """Returns what belongs to a task alone.

        Raises:
            ValueError: If the task was not learned.
        """
        if task not in self.own:
            raise ValueError(f"Task {task!r} was not learned; learned were: {', '.join(self.tasks) or '(none)'}.")
        return self.own[task]

    def before(self, task: str) -> "Memory":
        """Returns the same without a task and those that were learned after it."""
        self.of(task)
        names = self.tasks[: self.tasks.index(task)]
        heads = {name: head for name, head in self.heads.items() if name in names}
        return dataclasses.replace(self, own={name: self.own[name] for name in names}, heads=heads)

    def with_task(
        self,
        task: str,
        own: Arrays,
        *,
        shared: Arrays | None = None,
        learning: Arrays | None = None,
        head: HeadSpec | None = None,
    ) -> "Memory":
        """Returns the same with one more task.

        Args:
            task: Its name.
            own: What belongs to it alone.
            shared: What all tasks use from now on; as before if None.
            learning: What learning needs from now on; as before if None.
            head: Which head it has; a dense one if None.

        Raises:
            ValueError: If the task was learned already.
        """
        if task in self.own:
            raise ValueError(f"Task {task!r} was learned already.")
        return Memory(
            {**self.own, task: dict(own)},
            self.shared if shared is None else dict(shared),
            self.learning if learning is None else dict(learning),
            self.heads if head is None or head.is_dense else {**self.heads, task: head},
        )

    def with_changed(self, own: Mapping[str, Arrays]) -> "Memory":
        """Returns the same with other arrays of tasks that were learned before, of a method that trains old heads on.

        Args:
            own: What belongs to a task alone from now on, by task; those that are not named stay as they are.

        Raises:
            ValueError: If one of the tasks was not learned.
        """
        for task in own:
            self.of(task)
        return dataclasses.replace(self, own={**self.own, **{task: dict(arrays) for task, arrays in own.items()}})

    def save(self, path: str | os.PathLike) -> None:
        """Writes everything into one safetensors file, whole or not at all."""
        tensors = {f"shared/{name}": array for name, array in self.shared.items()}
        tensors |= {f"learning/{name}": array for name, array in self.learning.items()}
        for number, arrays in enumerate(self.own.values()):
            tensors |= {f"own/{number}/{name}": array for name, array in arrays.items()}
        heads = {task: head.to_json() for task, head in self.heads.items()}
        write_arrays(path, tensors, {"tasks": json.dumps(self.tasks)} | ({"heads": json.dumps(heads)} if heads else {}))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Memory":
        """Reads what `save` wrote.

        Raises:
            ValueError: If the file is none of these.
            OSError: If it cannot be read.
        """
        try:
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                tasks = json.loads(about["tasks"])
                heads = {t: HeadSpec.from_json(spec) for t, spec in json.loads(about.get("heads", "{}")).items()}
                own: dict[str, dict[str, np.ndarray]] = {task: {} for task in tasks}
                parts: dict[str, dict[str, np.ndarray]] = {"shared": {}, "learning": {}}
                for key in sorted(file.keys()):
                    part, _, name = key.partition("/")
                    target = parts.get(part)
                    if part == "own":
                        number, _, name = name.partition("/")
                        target = own[tasks[int(number)]]
                    target[name] = file.get_tensor(key)
        except (SafetensorError, KeyError, IndexError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)!r} is no file of learned tasks, or damaged ({error}).") from error
        return cls(own, parts["shared"], parts["learning"], heads)
