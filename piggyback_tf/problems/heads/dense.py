"""The head of classes: pooled features in, a logit for each class out."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, Head
from piggyback_tf.problems.heads.start import HeadStart


def dense(spec: HeadSpec, tensors: Sequence[keras.KerasTensor], start: HeadStart) -> keras.KerasTensor:
    """Returns float32 logits `[B, C]` of a Dense layer named `"head"`.

    Args:
        spec: Which head.
        tensors: The features `[B, F]` alone.
        start: How it starts.
    """
    (outputs,) = tensors
    if len(outputs.shape) != 2:
        raise ValueError(f"A classification head needs features of shape [B, F]; the model ends in {outputs.shape}.")
    if start.dropout:
        outputs = keras.layers.Dropout(start.dropout, seed=start.seed, name=f"{HEAD_NAME}_dropout")(outputs)
    layer = keras.layers.Dense(spec.classes, kernel_initializer=start.of_logits, dtype="float32", name=HEAD_NAME)
    return layer(outputs)


def read_dense(layer: keras.Layer, image_shape: tuple[int, int]) -> HeadSpec | None:
    """Returns the spec of a Dense layer."""
    del image_shape
    return HeadSpec.of(layer.units) if isinstance(layer, keras.layers.Dense) else None


def head_logits(features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns what a head that is given by its weights makes of features: logits, float32 `[B, C]`.

    Args:
        features: float32 `[B, F]`.
        kernel: float32 `[F, C]`.
        bias: float32 `[C]`.
    """
    return tf.nn.bias_add(tf.matmul(features, kernel), bias)


HEADS.register(DENSE)(Head(dense, read_dense))
