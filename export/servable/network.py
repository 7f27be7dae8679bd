"""The base's forward pass as a graph without weights, which are its arguments."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from export.servable.layout import ROW, Layout, Section
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.packs import BaseSpec


@dataclasses.dataclass(frozen=True, eq=False)
class ExportedBase:
    """A base as exports hold it; batch norm is with that of the tasks.

    Attributes:
        spec: What packs have to agree with.
        layout: Where its weights are.
        features: Its forward pass; see `save_network`.
        kernels: The vector of kernels, float32.
        rest: The vector of the weights that no task changes, float32.
    """

    spec: BaseSpec
    layout: Layout
    features: Callable[..., tf.Tensor]
    kernels: np.ndarray
    rest: np.ndarray


def save_network(backbone: Backbone, layout: Layout, folder: Path) -> None:
    """Writes the forward pass of a base as a SavedModel with no variables and one function, `features`.

    The function takes the vectors of kernels, batch norm and other weights, float32 (see `Layout`), and images,
    float32 `[B, S, S, 3]` in [0, 255]; it returns features, float32 `[B, F]`. It is a pure function, so that every
    signature, task and later export can use the one graph.

    Args:
        backbone: The base.
        layout: Where its weights are in the vectors.
        folder: The folder to write.
    """
    variables = named_variables(backbone.model)
    size = backbone.image_size
    sections = (layout.kernels, layout.norm, layout.rest)

    placed = {path for section in sections for path in section.shapes}
    constants = [(variable, variable.numpy()) for path, variable in variables.items() if path not in placed]

    def features(kernels: tf.Tensor, norm: tf.Tensor, rest: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        mapping = [(variable, tf.constant(value)) for variable, value in constants]
        for section, flat in zip(sections, (kernels, norm, rest), strict=True):
            mapping += [(variables[path], value) for path, value in split_section(section, flat).items()]
        # Within the scope Keras reads these tensors in the place of the variables.
        with keras.StatelessScope(state_mapping=mapping):
            return tf.cast(backbone.model(images, training=False), tf.float32)

    module = tf.Module()
    module.features = tf.function(
        features,
        input_signature=[
            *(tf.TensorSpec([section.length], tf.float32) for section in sections),
            tf.TensorSpec([None, size, size, 3], tf.float32),
        ],
        autograph=False,
    )
    tf.saved_model.save(module, str(folder))


def split_section(section: Section, flat: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the weights in a vector by path; they share its memory, but for those that do not fill their rows."""
    if not section.shapes:
        return {}
    padding = section.length // ROW - sum(section.rows)
    # Rows of 64 bytes: of such a matrix TensorFlow splits off aligned pieces without copying them.
    pieces = tf.split(tf.reshape(flat, [-1, ROW]), [*section.rows, padding])
    weights = {}
    for (path, shape), piece in zip(section.shapes.items(), pieces, strict=False):
        numbers, count = tf.reshape(piece, [-1]), math.prod(shape)
        weights[path] = tf.reshape(numbers if count % ROW == 0 else numbers[:count], shape)
    return weights


def unpack_kernels(kernels: tf.Tensor, keep: tf.Tensor, sign: tf.Tensor | None = None) -> tf.Tensor:
    """Returns masked kernels: +0.0 where the mask drops, else the weight's own bits, with the sign flipped if negated.

    Args:
        kernels: The vector of kernels, float32 `[n]`.
        keep: Which are kept, uint8 `[n / 8]`; bit k of byte i stands for number `k n / 8 + i`.
        sign: Which are negated, likewise; None if none.
    """
    # With integers it takes a third of the time of a multiplication by zeros and ones, and leaves no -0.0.
    words = tf.bitwise.bitwise_and(tf.bitcast(kernels, tf.int32), -_spread(keep))
    if sign is not None:
        words = tf.bitwise.bitwise_xor(words, tf.bitwise.left_shift(_spread(sign), tf.constant(31)))
    return tf.bitcast(words, tf.float32)


def _spread(packed: tf.Tensor) -> tf.Tensor:
    """Returns each bit as an int32 of 0 or 1, `[n]`."""
    places = tf.constant([[1 << k] for k in range(8)], tf.uint8)
    return tf.cast(tf.reshape(tf.cast(tf.bitwise.bitwise_and(packed[None], places), tf.bool), [-1]), tf.int32)
