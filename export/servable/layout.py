"""Where the weights of a base lie in the flat vectors of a SavedModel, and the masks in its bits.

Nothing here needs TensorFlow: a client that sends a mask packs it with this file.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.foreign_text import some
from piggyback_tf.packs import PackError, TaskPack

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone

# Every weight begins at a multiple of 64 bytes: TensorFlow then cuts it out of the vector without a copy.
_ROW = 16
# So do the bits of every kernel.
_BITS, _MASKED_ROW = 8, 8 * 64


@dataclasses.dataclass(frozen=True)
class Section:
    """Weights one behind another in a vector of float32, each filled up to whole rows.

    Attributes:
        shapes: The shape of each weight by canonical path, in order.
        row: How many numbers a row is.
    """

    shapes: Mapping[str, tuple[int, ...]]
    row: int = _ROW

    @functools.cached_property
    def rows(self) -> tuple[int, ...]:
        """How many rows each weight takes."""
        return tuple(-(-math.prod(shape) // self.row) for shape in self.shapes.values())

    @functools.cached_property
    def length(self) -> int:
        """Length of the vector."""
        return sum(self.rows) * self.row

    def items(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Yields path, shape and first place of each weight."""
        starts = itertools.accumulate(self.rows, initial=0)
        for (path, shape), start in zip(self.shapes.items(), starts, strict=False):
            yield path, shape, start * self.row

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the weights in a vector by path."""
        return {path: flat[start : start + math.prod(shape)].reshape(shape) for path, shape, start in self.items()}

    def flatten(self, arrays: Mapping[str, np.ndarray], otherwise: np.ndarray | None = None) -> np.ndarray:
        """Returns the vector, float32 `[length]`.

        Args:
            arrays: Weights by path.
            otherwise: The vector to take the other weights from; needed if there are others.
        """
        flat = np.zeros(self.length, np.float32) if otherwise is None else otherwise.copy()
        for path, shape, start in self.items():
            if path in arrays or otherwise is None:
                flat[start : start + math.prod(shape)] = arrays[path].reshape(-1)
        return flat


@dataclasses.dataclass(frozen=True)
class WeightLayout:
    """The three vectors that the weights of a base are kept in.

    Attributes:
        kernels: Those that can be masked, masked by a task or not.
        norm: Those of batch norm, of which a task can have its own.
        rest: All others of float32; the same for every task. What is of another dtype, such as a counter, is a constant
            of the graph.
    """

    kernels: Section
    norm: Section
    rest: Section

    @classmethod
    def of(cls, backbone: "Backbone") -> "WeightLayout":
        """Returns the layout of a base.

        Raises:
            ValueError: If a kernel or a variable of batch norm is not float32, or a layer computes with more than its
                kernel.
        """
        import keras

        from piggyback_tf.backbones import named_variables

        from ..shared.task_weights import TaskWeights

        found = TaskWeights.of(backbone)
        parts: dict[str, dict[str, tuple[int, ...]]] = {"kernels": {}, "norm": {}, "rest": {}}
        for path, variable in named_variables(backbone.model).items():
            part = "kernels" if path in found.kernels else "norm" if path.rpartition("/")[0] in found.norms else "rest"
            if keras.backend.standardize_dtype(variable.dtype) == "float32":
                parts[part][path] = tuple(variable.shape)
        return cls.from_json(parts)

    @classmethod
    def from_json(cls, parts: Mapping[str, Mapping[str, Any]]) -> "WeightLayout":
        """Returns the layout that `to_json` described."""
        shapes = {name: {path: tuple(shape) for path, shape in part.items()} for name, part in parts.items()}
        return cls(Section(shapes["kernels"], _MASKED_ROW), Section(shapes["norm"]), Section(shapes["rest"]))

    def to_json(self) -> dict[str, dict[str, list[int]]]:
        """Returns path and shape of every weight by section, in order."""
        sections = {"kernels": self.kernels, "norm": self.norm, "rest": self.rest}
        return {name: {path: list(shape) for path, shape in part.shapes.items()} for name, part in sections.items()}

    @functools.cached_property
    def vectors(self) -> Section:
        """The vectors among `rest`, which a task can replace."""
        return Section({path: shape for path, shape in self.rest.shapes.items() if len(shape) == 1}, self.rest.row)

    @property
    def mask_bytes(self) -> int:
        """Bytes of a task's mask: one bit for each number of the vector of kernels."""
        return self.kernels.length // _BITS

    def pack_mask(self, pack: TaskPack) -> np.ndarray:
        """Returns a task's mask in the order of the kernels' vector.

        Args:
            pack: A pack for this base.

        Returns:
            uint8 `[planes, mask_bytes]`: which weights are kept and, if the mask is ternary, which are negated. To the
            numbers s to s + m of the vector that are a kernel belong the bytes s / 8 to (s + m) / 8, and bit k of the
            byte i of these stands for the kernel's number `k m / 8 + i`. Weights that the task does not mask are kept.

        Raises:
            PackError: If the pack masks a weight that is no kernel which tasks can mask.
        """
        if foreign := [path for path in pack.masks if path not in self.kernels.shapes]:
            raise PackError(
                f"Task {pack.task!r} has a mask for {foreign[0]!r}, which is no kernel of this base that can be "
                f"masked. These can: {some(list(self.kernels.shapes), 10)}."
            )
        planes = np.zeros((2 if pack.mask_kind == "ternary" else 1, self.mask_bytes), np.uint8)
        for (path, shape, start), rows in zip(self.kernels.items(), self.kernels.rows, strict=True):
            count, length = math.prod(shape), rows * self.kernels.row
            bits = np.zeros((len(planes), length), np.uint8)
            if path in pack.masks:
                bits[:, :count] = np.unpackbits(pack.masks[path].packed, axis=1, count=count, bitorder="little")
            else:
                bits[0, :count] = 1
            columns = bits.reshape(len(planes), _BITS, -1)
            part = slice(start // _BITS, (start + length) // _BITS)
            planes[:, part] = np.packbits(columns, axis=1, bitorder="little")[:, 0]
        return planes
