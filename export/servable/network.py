"""The base's forward pass as a graph without weights, which are its arguments."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import BaseSpec
from piggyback_tf.problems import HeadNetwork
from piggyback_tf.surgery import features_with

from .layout import Section, WeightLayout


@dataclasses.dataclass(frozen=True, eq=False)
class ServedHead:
    """A base with one kind of head, for images of one size, as a SavedModel holds it.

    Attributes:
        shapes: The shape of each variable of the head by name.
        logits: Its forward pass; see `save_head_network`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    logits: Callable[..., tf.Tensor]

    @classmethod
    def from_json(cls, values: Mapping[str, Any], logits: Callable[..., tf.Tensor]) -> "ServedHead":
        """Returns the head of which `to_json` returned the shapes."""
        return cls({name: tuple(shape) for name, shape in values["shapes"].items()}, logits)

    def to_json(self) -> dict[str, Any]:
        """Returns the shapes."""
        return {"shapes": {name: list(shape) for name, shape in self.shapes.items()}}

    @property
    def length(self) -> int:
        """How many numbers a head of this kind is."""
        return sum(math.prod(shape) for shape in self.shapes.values())


@dataclasses.dataclass(frozen=True, eq=False)
class ServedNetwork:
    """A base as a SavedModel holds it; batch norm is with that of the tasks.

    Attributes:
        spec: What packs have to agree with.
        layout: Where its weights are.
        features: Its forward pass; see `save_network`.
        kernels: The vector of kernels, float32.
        rest: The vector of the weights that no task changes, float32.
        heads: By their specs the heads that are more than a layer on the features.
    """

    spec: BaseSpec
    layout: WeightLayout
    features: Callable[..., tf.Tensor]
    kernels: np.ndarray
    rest: np.ndarray
    heads: Mapping[HeadSpec, ServedHead] = dataclasses.field(default_factory=dict)


def save_network(backbone: Backbone, layout: WeightLayout, folder: Path) -> None:
    """Writes the forward pass of a base as a SavedModel with no variables and one function, `features`.

    The function takes a list of kernels, in the order of `layout.kernels`, the vectors of batch norm and other weights,
    float32 (see `WeightLayout`), and images, float32 `[B, S, S, 3]` in [0, 255]; it returns features, float32 `[B, F]`.
    It is a pure function, so that every signature, task and later export can use the one graph.

    Args:
        backbone: The base.
        layout: Where its weights are.
        folder: The folder to write.
    """
    values = _WeightsOfVectors(backbone, layout)
    size = backbone.image_size

    def features(kernels: list[tf.Tensor], norm: tf.Tensor, rest: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return features_with(backbone.model, values(kernels, norm, rest), images)

    module = tf.Module()
    module.features = tf.function(
        features,
        input_signature=[*values.specs, tf.TensorSpec([None, size, size, 3], tf.float32)],
        autograph=False,
    )
    tf.saved_model.save(module, str(folder))


def save_head_network(backbone: Backbone, layout: WeightLayout, network: HeadNetwork, folder: Path) -> ServedHead:
    """Writes the forward pass of a base and a kind of head as `save_network` does that of the base: as `logits`.

    The function takes what `features` takes, with images of the head's size, and before these the variables of the
    head, in the order of their names one behind another: float32 `[n]`. It returns logits, float32 `[B, ...]`.

    Args:
        backbone: The base.
        layout: Where its weights are.
        network: The base with the head; not one with a dense head, whose features `save_network` writes.
        folder: The folder to write.

    Returns:
        The head over what was written.
    """
    values, shapes = _WeightsOfVectors(backbone, layout), head_shapes(network)
    order = list(named_variables(backbone.model).values())

    def logits(
        kernels: list[tf.Tensor], norm: tf.Tensor, rest: tf.Tensor, head: tf.Tensor, images: tf.Tensor
    ) -> tf.Tensor:
        found = {id(variable): value for variable, value in values(kernels, norm, rest)}
        parts = tf.split(head, [math.prod(shape) for shape in shapes.values()])
        own = {name: tf.reshape(part, shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
        return network.logits([found[id(variable)] for variable in order], own, images)

    length = sum(math.prod(shape) for shape in shapes.values())
    images = tf.TensorSpec([None, *network.image_shape, 3], tf.float32)
    module = tf.Module()
    module.logits = tf.function(
        logits, input_signature=[*values.specs, tf.TensorSpec([length], tf.float32), images], autograph=False
    )
    tf.saved_model.save(module, str(folder))
    return ServedHead(shapes, tf.saved_model.load(str(folder)).logits)


def head_shapes(network: HeadNetwork) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each variable of a head by name, in the order in which exports hold them."""
    return dict(sorted((network.head_shapes or {}).items()))


class _WeightsOfVectors:
    """The values of a base's variables, made of the tensors that a graph gets.

    Args:
        backbone: The base.
        layout: Where its weights are.

    Attributes:
        specs: What a graph gets of the base: a list of kernels, and the vectors of batch norm and other weights.
    """

    def __init__(self, backbone: Backbone, layout: WeightLayout):
        self._layout, self._variables = layout, named_variables(backbone.model)
        placed = {path for section in (layout.kernels, layout.norm, layout.rest) for path in section.shapes}
        self._constants = [(each, each.numpy()) for path, each in self._variables.items() if path not in placed]
        self.specs: list[Any] = [
            [tf.TensorSpec(shape, tf.float32) for shape in layout.kernels.shapes.values()],
            tf.TensorSpec([layout.norm.length], tf.float32),
            tf.TensorSpec([layout.rest.length], tf.float32),
        ]

    def __call__(
        self, kernels: list[tf.Tensor], norm: tf.Tensor, rest: tf.Tensor
    ) -> list[tuple[keras.Variable, tf.Tensor]]:
        mapping = [(variable, tf.constant(value)) for variable, value in self._constants]
        weights = dict(zip(self._layout.kernels.shapes, kernels, strict=True))
        weights |= split_section(self._layout.norm, norm) | split_section(self._layout.rest, rest)
        return mapping + [(self._variables[path], value) for path, value in weights.items()]


def split_section(section: Section, flat: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the weights in a vector by path; they share its memory, but for those that do not fill their rows."""
    if not section.shapes:
        return {}
    # Rows are of 64 bytes or a multiple: of such a matrix TensorFlow splits off aligned pieces without copying them.
    return _in_shape(section, tf.split(tf.reshape(flat, [-1, section.row]), section.rows))


def unpack_kernels(section: Section, flat: tf.Tensor, planes: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns masked kernels by path: +0.0 where the mask drops, else the weight, with the sign flipped if negated.

    Args:
        section: Where the kernels are.
        flat: The vector of kernels, float32 `[n]`.
        planes: The mask as of `WeightLayout.pack_mask`, uint8 `[1 or 2, n / 8]`.
    """
    return _in_shape(section, _unpack_pieces(section, flat, planes))


def unpack_vector(section: Section, flat: tf.Tensor, planes: tf.Tensor) -> tf.Tensor:
    """Returns the vector of masked kernels, `[n]`; see `unpack_kernels`."""
    return tf.concat(_unpack_pieces(section, flat, planes), axis=0)


def _in_shape(section: Section, pieces: list[tf.Tensor]) -> dict[str, tf.Tensor]:
    """Returns weights by path from their rows."""
    return {path: in_shape(section, path, piece) for path, piece in zip(section.shapes, pieces, strict=True)}


def in_shape(section: Section, path: str, piece: tf.Tensor) -> tf.Tensor:
    """Returns a weight from its rows."""
    shape = section.shapes[path]
    numbers, count = tf.reshape(piece, [-1]), math.prod(shape)
    return tf.reshape(numbers if count % section.row == 0 else numbers[:count], shape)


def in_rows(section: Section, weights: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Returns the vector of weights, `[n]`, each filled up to whole rows."""
    flat = [tf.reshape(weights[path], [-1]) for path in section.shapes]
    padded = (
        tf.pad(numbers, [[0, rows * section.row - math.prod(shape)]])
        for numbers, rows, shape in zip(flat, section.rows, section.shapes.values(), strict=True)
    )
    return tf.concat(list(padded), axis=0)


def _unpack_pieces(section: Section, flat: tf.Tensor, planes: tf.Tensor) -> list[tf.Tensor]:
    """Returns the rows of each masked kernel, float32 `[rows * section.row]`."""

    def unpack(mask: tf.types.experimental.PolymorphicFunction) -> list[tf.Tensor]:
        pieces: list[tf.Tensor] = []
        for (_, _, start), rows in zip(section.items(), section.rows, strict=True):
            # One kernel after another, each ready for its layer before the next is begun. What is computed in between
            # then stays in the processor's cache, and in memory that is used again; a vector as large as the base is
            # memory that the system gives and takes back in every call, which takes longer than the unpacking.
            with tf.control_dependencies(pieces[-1:]):
                pieces.append(mask(flat, planes, tf.constant(start), tf.constant(start + rows * section.row)))
        return pieces

    return _by_planes(planes, lambda: unpack(_mask_ternary), lambda: unpack(_mask_binary))


def mask_piece(flat: tf.Tensor, planes: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of a vector of kernels from start to end, masked; see `unpack_kernels`."""
    arguments = flat, planes, start, end
    return _by_planes(planes, lambda: _mask_ternary(*arguments), lambda: _mask_binary(*arguments))


def affine_piece(flat: tf.Tensor, planes: tf.Tensor, start: tf.Tensor, end: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
    """Returns the numbers of a vector of kernels from start to end, with an affine mask.

    Args:
        flat, planes: As for `unpack_kernels`.
        start, end: The numbers, int32 `[]`.
        numbers: By what a weight is multiplied where the mask is 0, 1 and -1, and what is added: float32 `[6]`.
    """
    bits = planes[:, start // 8 : end // 8]
    # 0, 1, or 2 where it is negated, for the place in each half of the numbers.
    places = tf.cast(spread(bits[0]), tf.int32)
    places = _by_planes(planes, lambda: places + tf.cast(spread(bits[1]), tf.int32), lambda: places)
    return flat[start:end] * tf.gather(numbers[:3], places) + tf.gather(numbers[3:], places)


def _by_planes(planes: tf.Tensor, ternary: Callable[[], Any], binary: Callable[[], Any]) -> Any:
    """Returns what the one function returns for a mask of two planes, and the other for one of one."""
    if planes.shape[0] is not None:
        return ternary() if planes.shape[0] == 2 else binary()
    return tf.cond(tf.shape(planes)[0] == 2, ternary, binary)


# A function of the graph for all kernels makes the graph a third of the size.
_PIECE = [
    tf.TensorSpec([None], tf.float32),
    tf.TensorSpec([None, None], tf.uint8),
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([], tf.int32),
]


@tf.function(input_signature=_PIECE, autograph=False)
def _mask_binary(flat: tf.Tensor, planes: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns the numbers from start to end, masked."""
    return _drop(flat[start:end], planes[0, start // 8 : end // 8])


@tf.function(input_signature=_PIECE, autograph=False)
def _mask_ternary(flat: tf.Tensor, planes: tf.Tensor, start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Returns the numbers from start to end, masked and some of them negated."""
    bits = planes[:, start // 8 : end // 8]
    flips = tf.bitwise.left_shift(tf.cast(spread(bits[1]), tf.int32), tf.constant(31))
    negated = tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(flat[start:end], tf.int32), flips), tf.float32)
    return _drop(negated, bits[0])


def _drop(kernel: tf.Tensor, keep: tf.Tensor) -> tf.Tensor:
    # Where the mask is 0 the product is +0.0, whatever the weight.
    return tf.math.multiply_no_nan(kernel, tf.cast(spread(keep), tf.float32))


def spread(packed: tf.Tensor) -> tf.Tensor:
    """Returns each bit as a truth value, `[m]`: bit k of byte i at `k m / 8 + i`."""
    places = tf.constant([[1 << k] for k in range(8)], tf.uint8)
    return tf.cast(tf.reshape(tf.bitwise.bitwise_and(packed[None], places), [-1]), tf.bool)
