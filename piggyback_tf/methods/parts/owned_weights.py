"""Networks whose weights belong to one task each, or to none yet: what PackNet and CPG share."""

import abc
import dataclasses
import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, ClassVar

import keras
import numpy as np

from piggyback_tf.backbones import Backbone, named_layers
from piggyback_tf.methods.base import Method
from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.surgery import KERNELS, foreign_kernels

MOST_TASKS = 255  # What a byte can number, beside 0 for free weights.


@dataclasses.dataclass(frozen=True)
class OwnedWeight:
    """A kernel, the owners of its weights, and the task that is learned."""

    task: int
    kernel: keras.Variable
    owner: keras.Variable

    def prune(self, fraction: float) -> None:
        """Sets a part of the weights free that the task found free, the smallest first; those that are free stay so.

        Args:
            fraction: Which part is free afterwards, if it is not more already.
        """
        owner = np.array(keras.ops.convert_to_numpy(self.owner)).reshape(-1)
        size = np.abs(keras.ops.convert_to_numpy(self.kernel)).reshape(-1)
        own, free = np.flatnonzero(owner == self.task), int(np.count_nonzero(owner == 0))
        count = count_of_part(fraction, own.size + free) - free
        if count > 0:
            owner[own[np.argpartition(size[own], count - 1)[:count]]] = 0
            self.owner.assign(owner.reshape(self.owner.shape))


class OwningLayer(abc.ABC):
    """What layers have whose weights have owners; comes before the Keras layer in the bases of a class.

    Beside each kernel lies its owner, uint8 of the same shape: the number of a task, from 1, or 0 where a weight is
    free, which counts as 0 whatever its value.

    Args:
        *args: As for the Keras layer.
        task: Number of the task that is learned.
        **kwargs: As for the next of the bases.
    """

    def __init__(self, *args: Any, task: int = 1, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.task = task

    @abc.abstractmethod
    def owned_weights(self) -> dict[str, OwnedWeight]:
        """Returns the kernels with their owners by name."""


def add_owner(layer: keras.Layer, weight: str, shape: Iterable[int]) -> keras.Variable:
    """Adds the owners of a kernel to a layer, all of the first task.

    Args:
        layer: The layer, while it is built.
        weight: Name of the kernel.
        shape: Shape of the kernel.
    """
    # Past the `add_weight` of layers with something to say about their weights.
    return keras.Layer.add_weight(
        layer,
        shape=tuple(shape),
        initializer="ones",
        dtype="uint8",
        autocast=False,
        trainable=False,
        name=owner_of(weight),
    )


class OwnedNetwork(Method):
    """A method with one network for all tasks, whose kernels the tasks share out among themselves."""

    makes_pack = False
    sequential = True
    replaces_base = True
    # By what a task takes fewer weights, such as `"a larger packnet_prune"`.
    less: ClassVar[str]

    @abc.abstractmethod
    def fraction_of(self, task: int) -> float:
        """Returns which part of the weights that it finds free a task leaves free at least.

        Args:
            task: Its number, from 1.
        """

    @property
    def task(self) -> int:
        """Number of the task that is learned next."""
        return len(self.memory.tasks) + 1

    def check_room(self, backbone: Backbone, tasks: int) -> None:
        for path, layer in named_layers(backbone.model):
            for weight in KERNELS.get(type(layer), ()):
                free = math.prod(getattr(layer, weight).shape)
                for task in range(1, tasks + 1):
                    self._check_number(task)
                    if not free:
                        raise ValueError(self._no_room(f"{path}/{weight}", task))
                    free = count_of_part(self.fraction_of(task), free)

    def check_network(self, backbone: Backbone) -> None:
        """Refuses a network with kernels that cannot be shared out, and a task whose number has no place in a byte."""
        self._check_number(self.task)
        if foreign := foreign_kernels(dict(named_layers(backbone.model)), KERNELS):
            raise ValueError(
                f"These layers have kernels of a kind that {type(self).__name__} cannot prune: {foreign}. It prunes "
                f"those of {', '.join(kind.__name__ for kind in KERNELS)}; use another backbone, or another method."
            )

    def take_free(self, arrays: Arrays) -> dict[str, np.ndarray]:
        """Returns weights and owners with the task that is learned as the owner of all that is free.

        Raises:
            ValueError: If nothing is, in one of the kernels.
        """
        taken = dict(arrays)
        for path in owned_kernels(arrays):
            free = arrays[owner_of(path)] == 0
            if not free.any():
                raise ValueError(self._no_room(path, self.task))
            taken[owner_of(path)] = np.where(free, np.uint8(self.task), arrays[owner_of(path)])
        return taken

    def _check_number(self, task: int) -> None:
        if task > MOST_TASKS:
            raise ValueError(
                f"{type(self).__name__} learns at most {MOST_TASKS} tasks, since a byte names the owner of a weight."
            )

    def _no_room(self, path: str, task: int) -> str:
        return (
            f"No weight of {path!r} is free for task {task}: {type(self).__name__}'s tasks before it took all. Learn "
            f"fewer tasks, or let each take less, with {self.less}."
        )


def count_of_part(fraction: float, count: int) -> int:
    """Returns how many of some weights a part of them is, rounded down, so that a task keeps at least one."""
    # The decimal number as it was written: 0.29 of 100 is 29, and not 28.999999999999996.
    return int(Fraction(str(fraction)) * count)


def owned_weights(model: keras.Model) -> dict[str, OwnedWeight]:
    """Returns the kernels of a model that have owners, by canonical path."""
    return {
        f"{path}/{name}": weight
        for path, layer in named_layers(model)
        if isinstance(layer, OwningLayer)
        for name, weight in layer.owned_weights().items()
    }


def free_weights(memory: Memory) -> dict[str, int]:
    """Returns how many weights of each kernel no task owns yet, by the kernel's canonical path."""
    shared = memory.shared
    return {path: int(np.count_nonzero(shared[owner_of(path)] == 0)) for path in owned_kernels(shared)}


def owned_kernels(arrays: Arrays) -> list[str]:
    """Returns the paths of the kernels beside which their owners lie."""
    return [path for path in arrays if owner_of(path) in arrays]


def owner_of(path: str) -> str:
    """Returns the path of the owners of a kernel, or their name from its."""
    return f"{path}_owner"
