"""The head of classes: pooled features in, a logit for each class out."""

from collections.abc import Sequence

import keras

from piggyback_tf.problems.heads.registry import HEAD_NAME, HEADS, Head
from piggyback_tf.problems.heads.spec import HeadSpec
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


def read_dense(layer: keras.Layer) -> HeadSpec | None:
    """Returns the spec of a Dense layer."""
    return HeadSpec("dense", layer.units) if isinstance(layer, keras.layers.Dense) else None


HEADS.register("dense")(Head(dense, read_dense))
