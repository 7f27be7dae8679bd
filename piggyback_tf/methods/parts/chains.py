"""Networks that are one chain of layers, and what of their units is alive for which task."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones import is_batch_norm, named_layers
from piggyback_tf.backbones.paths import calls_of
from piggyback_tf.methods.parts.memory import Arrays
from piggyback_tf.methods.parts.units import keeps_zeros

CHAINED_LAYERS: tuple[type[keras.layers.Layer], ...] = (keras.layers.Dense, keras.layers.Conv2D)
_SENTENCE = (
    "DEN learns on chains of Dense and Conv2D layers, with batch norm, activations with f(0) = 0 and pooling between "
    "them; {}. Use another backbone, or another method, such as piggyback."
)


@dataclasses.dataclass(frozen=True)
class Link:
    """A layer with a kernel, and the batch norm behind it.

    Attributes:
        path: The layer's canonical path.
        norms: Those of batch norm before the next kernel.
    """

    path: str
    norms: tuple[str, ...]


def read_chain(model: keras.Model) -> list[Link]:
    """Returns the links of a network, the first one first.

    Raises:
        ValueError: If it is no such chain; the sentence says where and why.
    """
    paths = {id(layer): path for path, layer in named_layers(model)}
    links: list[Link] = []
    tensor = model.inputs[0]
    for node in calls_of(model):
        operation, name = node.operation, paths.get(id(node.operation), node.operation.name)
        if not node.input_tensors:
            continue
        if len(node.input_tensors) != 1 or node.input_tensors[0] is not tensor:
            raise ValueError(_SENTENCE.format(f"at {name!r} this network is no chain"))
        if type(operation) in CHAINED_LAYERS:
            if getattr(operation, "groups", 1) != 1 or getattr(operation, "data_format", None) == "channels_first":
                raise ValueError(_SENTENCE.format(f"{name!r} has groups, or its channels come first"))
            if not keeps_zeros(keras.layers.Activation(operation.activation)):
                raise ValueError(_SENTENCE.format(f"the activation of {name!r} is no such"))
            if name in [link.path for link in links]:
                raise ValueError(_SENTENCE.format(f"{name!r} occurs twice"))
            links.append(Link(name, ()))
        elif links and is_batch_norm(operation) and operation.axis in (-1, len(tensor.shape) - 1):
            links[-1] = dataclasses.replace(links[-1], norms=(*links[-1].norms, name))
        # In front of the first link anything prepares the images that has no kernel.
        elif (links and not _passes_units(operation)) or _has_kernel(operation):
            raise ValueError(_SENTENCE.format(f"{name!r} is of class {type(operation).__name__}"))
        tensor = node.output_tensors[0]
    if not links:
        raise ValueError(_SENTENCE.format("this network has none"))
    return links


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of all links, and the weights between them.

    A unit lives from the task that brought it on, until a later task replaces it, if one does. A task computes with the
    units that live in it alone.

    Attributes:
        links: The chain.
        arrays: The kernel of each link, `[..., units of the link before, units]`, and its vectors `[units]`, by
            canonical path; the first kernel reads all channels of the image.
        birth: The number of the task that brought each unit, from 1, uint8 `[units]`, by path of the link.
        death: That of the task that replaced it, or 0.
    """

    links: list[Link]
    arrays: Mapping[str, np.ndarray]
    birth: Mapping[str, np.ndarray]
    death: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, links: list[Link], arrays: Arrays) -> "Units":
        """Returns the units of a base, which all live from the first task on."""
        own = {path: array for link in links for path, array in _of_link(link, arrays).items()}
        sizes = {link.path: arrays[f"{link.path}/kernel"].shape[-1] for link in links}
        birth = {path: np.ones(size, np.uint8) for path, size in sizes.items()}
        return cls(links, own, birth, {path: np.zeros(size, np.uint8) for path, size in sizes.items()})

    @classmethod
    def read(cls, links: list[Link], shared: Arrays) -> "Units":
        """Returns what `written` returned."""
        birth = {link.path: shared[f"{link.path}/birth"] for link in links}
        death = {link.path: shared[f"{link.path}/death"] for link in links}
        lives = {f"{link.path}/{name}" for link in links for name in ("birth", "death")}
        own = {path: array for link in links for path, array in _of_link(link, shared).items()}
        return cls(links, {path: array for path, array in own.items() if path not in lives}, birth, death)

    def written(self) -> dict[str, np.ndarray]:
        """Returns all of it as arrays by name."""
        lives = {f"{path}/birth": array for path, array in self.birth.items()}
        return {**self.arrays, **lives, **{f"{path}/death": array for path, array in self.death.items()}}

    def living(self, task: int) -> dict[str, np.ndarray]:
        """Returns the places of the units that live in a task, rising, by path of the link."""
        return {
            path: np.flatnonzero((birth <= task) & ((self.death[path] == 0) | (self.death[path] > task)))
            for path, birth in self.birth.items()
        }

    def network(self, task: int) -> dict[str, np.ndarray]:
        """Returns the arrays of the network of a task, by canonical path."""
        living, found = self.living(task), {}
        before: np.ndarray | None = None
        for link in self.links:
            own = living[link.path]
            for path, array in _of_link(link, self.arrays).items():
                found[path] = array[..., own]
                if path == f"{link.path}/kernel" and before is not None:
                    found[path] = found[path][..., before, :]
            before = own
        return found

    def grown(
        self,
        task: int,
        learned: Arrays,
        brought: Mapping[str, np.ndarray],
        replaced: Mapping[str, np.ndarray],
    ) -> tuple["Units", np.ndarray]:
        """Returns the units after a task that changed some, replaced some by copies, and brought new ones.

        The network of the task computes what the trained one did. For earlier tasks a replaced unit has its old
        weights, and any other its new ones.

        Args:
            task: Its number.
            learned: The trained network: the units that lived before it, in their order, and then new ones.
            brought: Which of the new units are kept, bool `[new units]`, by path of the link.
            replaced: Which of the units that lived before are replaced, bool `[units that lived]`.

        Returns:
            The units, and the places in the trained network of the last link's units that live in the task, in their
            new order.
        """
        living = self.living(task - 1)
        arrays: dict[str, np.ndarray] = {}
        birth, death = dict(self.birth), dict(self.death)
        # Of the link before: where the units of the trained network are for this task, and for earlier ones.
        view = trained = np.zeros(0, int)
        view_before: np.ndarray | None = None
        old_before = trained_before = view
        for link in self.links:
            path, old = link.path, living[link.path]
            copies, new = np.flatnonzero(replaced[path]), np.flatnonzero(brought[path])
            size = len(self.birth[path])
            birth[path] = np.concatenate([self.birth[path], np.full(len(copies) + len(new), task, np.uint8)])
            death[path] = np.concatenate([self.death[path], np.zeros(len(copies) + len(new), np.uint8)])
            death[path][old[copies]] = task
            view = old.copy()
            view[copies] = size + np.arange(len(copies))
            view = np.concatenate([view, size + len(copies) + np.arange(len(new))])
            trained = np.concatenate([np.arange(len(old)), len(old) + new])
            for name, array in _of_link(link, self.arrays).items():
                values = np.asarray(learned[name])[..., trained]
                is_kernel = name == f"{path}/kernel"
                inputs = array.shape[-2] if is_kernel else 0
                if is_kernel and view_before is not None:
                    inputs, values = len(birth[_before(self.links, link)]), values[..., trained_before, :]
                shape = (*array.shape[:-2], inputs, len(birth[path])) if is_kernel else (len(birth[path]),)
                whole = np.zeros(shape, array.dtype)
                if not is_kernel:
                    whole[:size] = array
                    whole[view] = values
                elif view_before is None:
                    whole[..., :size] = array
                    whole[..., view] = values
                else:
                    whole[..., : array.shape[-2], :size] = array
                    _put(whole, view_before, view, values)
                    # What earlier tasks read of units that this one does not read any more.
                    kept = np.flatnonzero(~replaced[path])
                    _put(whole, old_before, old[kept], values[..., : len(old_before), :][..., kept])
                arrays[name] = whole
            view_before, old_before, trained_before = view, old, trained
        return Units(self.links, arrays, birth, death), trained[np.argsort(view)]


def moved(units: Units, task: int, learned: Arrays) -> dict[str, np.ndarray]:
    """Returns how far each unit moved that lived before a task, as a part of the length of its weights.

    Its weights are those from units that lived before, and its bias.

    Args:
        units: Before the task.
        task: Its number.
        learned: As for `Units.grown`.
    """
    before, found = units.network(task - 1), {}
    for link in units.links:
        change = length = np.zeros(())
        for name in (f"{link.path}/kernel", f"{link.path}/bias"):
            if name not in before:
                continue
            old = before[name].astype(np.float64)
            now = np.asarray(learned[name])[tuple(slice(side) for side in old.shape)]
            axes = tuple(range(old.ndim - 1))
            change = change + np.square(now - old).sum(axis=axes)
            length = length + np.square(old).sum(axis=axes)
        found[link.path] = np.sqrt(change) / np.maximum(np.sqrt(length), np.finfo(np.float32).tiny)
    return found


def _passes_units(operation: Any) -> bool:
    return type(operation) is not keras.layers.Flatten and keeps_zeros(operation)


def _has_kernel(operation: Any) -> bool:
    return isinstance(operation, keras.Layer) and any(len(weight.shape) > 1 for weight in operation.weights)


def _put(whole: np.ndarray, rows: np.ndarray, columns: np.ndarray, values: np.ndarray) -> None:
    """Writes values `[..., rows, columns]` into places of the last two axes."""
    whole[..., rows[:, None], columns] = values


def _before(links: list[Link], link: Link) -> str:
    return links[links.index(link) - 1].path


def _of_link(link: Link, arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the arrays of a layer and of the batch norm behind it."""
    return {path: array for path, array in arrays.items() if path.rpartition("/")[0] in (link.path, *link.norms)}
