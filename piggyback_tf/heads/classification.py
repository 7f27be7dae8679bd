"""The classification head: features in, logits out."""

import keras
import tensorflow as tf

from piggyback_tf.registry import unknown_name_message
from piggyback_tf.settings.methods.base import HEAD_INITS

HEAD_NAME = "head"


def is_head(path: str) -> bool:
    """Whether a canonical path is that of a variable of the head."""
    return path.startswith(f"{HEAD_NAME}/")


def add_classification_head(
    features: keras.Model, num_classes: int, *, dropout: float = 0.0, init: str = "zeros", seed: int = 0
) -> keras.Model:
    """Returns `features` with a Dense layer named `"head"` on top.

    Args:
        features: A functional or sequential model that ends in features `[B, F]`; its layers become the result's own.
        num_classes: Number of logits.
        dropout: Rate of a dropout layer before the head; 0 for none.
        init: How the kernel starts. `"zeros"`: the loss starts at chance, and the features get no gradient before the
            head has learned something. `"glorot"`: uniform by Glorot; many classes on large features then start with a
            loss far above chance, and the strongest part of the features' gradient is to become smaller.
        seed: Seed of a random kernel, so that it depends on nothing that ran before.

    Returns:
        A functional model from images to float32 logits `[B, num_classes]`, whatever the dtype policy.

    Raises:
        ValueError: If there are fewer than two classes, `init` is none of `HEAD_INITS`, the features are not of rank
            2, or the model has a layer of the head's name.
    """
    if num_classes < 2:
        raise ValueError(f"A classification head needs at least 2 classes. Received: num_classes={num_classes}.")
    if init not in HEAD_INITS:
        raise ValueError(unknown_name_message("head init", init, list(HEAD_INITS)))
    outputs = features.output
    if len(outputs.shape) != 2:
        raise ValueError(f"A classification head needs features of shape [B, F]; the model ends in {outputs.shape}.")
    taken = {layer.name for layer in features.layers} & {HEAD_NAME, f"{HEAD_NAME}_dropout"}
    if taken:
        raise ValueError(
            f"The backbone has a layer named {sorted(taken)[0]!r}, which is what the head of a task is called. Give "
            "that layer another name."
        )
    if dropout:
        outputs = keras.layers.Dropout(dropout, seed=seed, name=f"{HEAD_NAME}_dropout")(outputs)
    initializer = keras.initializers.GlorotUniform(seed=seed) if init == "glorot" else "zeros"
    logits = keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype="float32", name=HEAD_NAME)(outputs)
    return keras.Model(features.input, logits, name=features.name)


def head_logits(features: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns what a head that is given by its weights makes of features: logits, float32 `[B, C]`.

    Args:
        features: float32 `[B, F]`.
        kernel: float32 `[F, C]`.
        bias: float32 `[C]`.
    """
    return tf.nn.bias_add(tf.matmul(features, kernel), bias)
