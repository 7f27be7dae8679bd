"""A task as a bank holds it: its numbers in as few bytes as they take, and what has to be told about it."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.codec import EncodedMasks, encode
from piggyback_tf.packs.pack import TaskPack

HOLDS = ("packed", "compressed")
Shapes = tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class ArrayPlaces:
    """Where a task's arrays are in its buffers; one object serves all tasks that agree in it.

    Attributes:
        masks: Path and shape of each weight that has a mask, in the order of the bits.
        planes: Bits a weight: 2 for ternary masks.
        norm: Path and shape of each variable of batch norm, in the order of the numbers.
        parts: Name and shape of each other change of the base, whose numbers follow.
        head: Name and shape of each variable of the head, whose numbers follow.
    """

    masks: Shapes
    planes: int
    norm: Shapes
    parts: Shapes
    head: Shapes

    @property
    def floats(self) -> Shapes:
        """Name and shape of all that is no mask, in order."""
        return (*self.norm, *self.parts, *self.head)

    @functools.cached_property
    def mask_starts(self) -> tuple[int, ...]:
        """The first byte of each mask, and the number of all bytes."""
        sizes = (self.planes * -(-math.prod(shape) // 8) for _, shape in self.masks)
        return tuple(itertools.accumulate(sizes, initial=0))

    @functools.cached_property
    def float_starts(self) -> tuple[int, ...]:
        """The first number of each array of `floats`, and the number of all numbers."""
        return tuple(itertools.accumulate((math.prod(shape) for _, shape in self.floats), initial=0))


@dataclasses.dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class HeldTask:
    """A task in a bank. It never changes; a task of the same name that is added later is another object.

    Attributes:
        name: The task's name.
        class_names: The classes in the order of the head's outputs.
        method: The method that trained the task.
        mask_kind: `"binary"`, `"ternary"` or `"none"`.
        problem: What is to be found in an image.
        head_spec: Which head it has.
        eval_augment: The augmentation string that prepares an image for evaluation.
        errors: Split name to the errors measured there.
        zeros: The fraction of dropped weights over all masks.
        layout: Which arrays the task has.
        bits: The packed masks one after another, uint8, or the encoded ones.
        floats: Batch norm, other changes of the base, and head, one array after another, float32.
    """

    name: str
    class_names: tuple[str, ...]
    method: str
    mask_kind: str
    problem: str
    head_spec: HeadSpec
    eval_augment: str
    errors: dict[str, dict[str, Any]]
    zeros: float
    layout: ArrayPlaces
    bits: np.ndarray | EncodedMasks
    floats: np.ndarray

    @classmethod
    def of(cls, pack: TaskPack, hold: str) -> "HeldTask":
        """Copies out of a pack what a bank needs of it.

        Args:
            pack: A pack that was checked.
            hold: One of `HOLDS`.
        """
        layout = _layout(
            tuple((path, tuple(mask.shape)) for path, mask in pack.masks.items()),
            2 if pack.mask_kind == "ternary" else 1,
            tuple((path, value.shape) for path, value in pack.norm.items()),
            tuple((name, value.shape) for name, value in pack.parts.items()),
            tuple((name, value.shape) for name, value in pack.head.items()),
        )
        if hold == "compressed" and pack.masks:
            bits: np.ndarray | EncodedMasks = _shared_index(encode(pack.masks, pack.mask_kind), layout)
        else:
            bits = np.concatenate([np.zeros(0, np.uint8), *(mask.packed.reshape(-1) for mask in pack.masks.values())])
        numbers = [*pack.norm.values(), *pack.parts.values(), *pack.head.values()]
        return cls(
            name=pack.task,
            class_names=tuple(pack.class_names),
            method=pack.method,
            mask_kind=pack.mask_kind,
            problem=pack.problem,
            head_spec=pack.head_spec,
            eval_augment=pack.eval_augment,
            errors={split: dict(errors) for split, errors in pack.errors.items()},
            zeros=pack.zeros_total,
            layout=layout,
            bits=bits,
            floats=np.concatenate([value.reshape(-1) for value in numbers]),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.bits.nbytes + self.floats.nbytes

    def arrays(self) -> TaskArrays:
        """Returns the task's arrays: views, but for masks that are held compressed, which are decoded for this call."""
        floats, places = self._floats(), self.layout
        return TaskArrays(
            mask_kind=self.mask_kind,
            masks=self._masks(),
            norm=dict(itertools.islice(floats, len(places.norm))),
            parts=dict(itertools.islice(floats, len(places.parts))),
            head=dict(floats),
        )

    def _masks(self) -> dict[str, MaskBits]:
        if not isinstance(self.bits, np.ndarray):
            return self.bits.decode()
        starts = itertools.pairwise(self.layout.mask_starts)
        return {
            path: MaskBits(shape, self.bits[start:end].reshape(self.layout.planes, -1))
            for (path, shape), (start, end) in zip(self.layout.masks, starts, strict=True)
        }

    def _floats(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the variables of batch norm, then other changes of the base, then the variables of the head."""
        starts = itertools.pairwise(self.layout.float_starts)
        for (name, shape), (start, end) in zip(self.layout.floats, starts, strict=True):
            yield name, self.floats[start:end].reshape(shape)

    def info(self) -> dict[str, Any]:
        """Returns what a bank tells about a task."""
        return {
            "task": self.name,
            "class_names": list(self.class_names),
            "method": self.method,
            "mask_kind": self.mask_kind,
            "problem": self.problem,
            "image_shape": self.head_spec.image_shape,
            "errors": {split: dict(errors) for split, errors in self.errors.items()},
            "zeros": self.zeros,
            "eval_augment": self.eval_augment,
            "bytes": self.nbytes,
        }


@functools.lru_cache(maxsize=64)
def _layout(masks: Shapes, planes: int, norm: Shapes, parts: Shapes, head: Shapes) -> ArrayPlaces:
    """Returns the same object for the same arguments: a layout takes more memory than the head of a small task."""
    return ArrayPlaces(masks, planes, norm, parts, head)


def _shared_index(encoded: EncodedMasks, layout: ArrayPlaces) -> EncodedMasks:
    """Returns the same encoded masks with the paths and shapes of the layout, of which there is one copy."""
    layers = zip(encoded.layers, layout.masks, strict=True)
    shared = tuple(dataclasses.replace(layer, path=path, shape=shape) for layer, (path, shape) in layers)
    return dataclasses.replace(encoded, layers=shared)
