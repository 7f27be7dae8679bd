"""Heads of several tasks side by side as one Dense layer, and networks whose old heads are trained on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.parts.added_loss import ExtendedModel, no_term
from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.methods.parts.shared_network import SharedNetwork
from piggyback_tf.problems import HEAD_NAME, HeadSpec, add_head
from piggyback_tf.surgery import own_arrays

OLD_HEADS_NAME = "old_heads"


def join_heads(memory: Memory) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel `[F, C]` and the bias `[C]` of all learned heads, in the order of learning."""
    heads = list(memory.own.values())
    kernel = np.concatenate([head[f"{HEAD_NAME}/kernel"] for head in heads], axis=1)
    return kernel, np.concatenate([head[f"{HEAD_NAME}/bias"] for head in heads])


def split_heads(kernel: np.ndarray, bias: np.ndarray, classes: Mapping[str, int]) -> dict[str, Arrays]:
    """Returns what `Memory.own` has of each head, by task.

    Args:
        kernel: `[F, C]`.
        bias: `[C]`.
        classes: The number of classes of each task, in the order in which they lie; `C` together.
    """
    ends = np.cumsum(list(classes.values()))[:-1]
    parts = zip(classes, np.split(kernel, ends, axis=1), np.split(bias, ends), strict=True)
    return {task: {f"{HEAD_NAME}/kernel": own, f"{HEAD_NAME}/bias": offset} for task, own, offset in parts}


def own_head(labels: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """Returns which classes are of the same head as the label, bool `[B, C]`.

    Args:
        labels: Whole numbers `[B]` in `[0, C)`, of any dtype: with several devices Keras has floats.
        classes: The number of classes of each head, in the order in which they lie; `C` together.
    """
    head_of = tf.constant(np.repeat(np.arange(len(classes)), classes))
    return tf.gather(head_of, tf.cast(tf.reshape(labels, [-1]), tf.int32))[:, None] == head_of


def own_logits(labels: tf.Tensor, logits: tf.Tensor, classes: Sequence[int]) -> tf.Tensor:
    """Returns logits `[B, C]` with the lowest number there is wherever a class is of another head than the label.

    Its exponential is exactly 0, so that neither a loss nor a gradient knows of these classes.

    Args:
        labels: As of `own_head`.
        logits: `[B, C]`.
        classes: As of `own_head`.
    """
    return tf.where(own_head(labels, classes), logits, logits.dtype.min)


class OldHeadsModel(ExtendedModel):
    """A functional model that in training also answers with old heads.

    Its graph ends in the logits of the new head and, behind them, those of the old heads, `[B, C + O]`. Outside of
    training it answers with the new head's alone, `[B, C]`. Labels are those of the new task.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        logits = super().call(inputs, training=training, mask=mask)
        return logits if training else self.answers_to_labels(logits)

    def answers_to_labels(self, answers: tf.Tensor) -> tf.Tensor:
        return answers[:, : self.get_layer(HEAD_NAME).units]

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        return super().compute_metrics(x, y, self.answers_to_labels(y_pred), sample_weight)


class OldHeadsNetwork(SharedNetwork):
    """A method with one network for all tasks, which trains the heads of earlier tasks beside the new one."""

    extended_model = OldHeadsModel

    def build(self, backbone: Backbone, head: HeadSpec | int, seed: int = 0) -> keras.Model:
        if not self.memory.tasks:
            return super().build(backbone, head, seed)
        features = self.feature_model(backbone, seed)
        model = add_head(features, HeadSpec.of(head), self.head_start(seed))
        weights = join_heads(self.memory)
        old_heads = keras.layers.Dense(len(weights[1]), dtype="float32", name=OLD_HEADS_NAME)
        logits = keras.layers.Concatenate(name="all_heads", dtype="float32")([model.output, old_heads(features.output)])
        old_heads.set_weights(weights)
        model = keras.Model(model.input, logits, name=model.name)
        term = self.added_loss(model, backbone) or no_term
        return self.extended_model(inputs=model.input, outputs=logits, name=model.name, added_loss=term)

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        memory = super().remember(model, backbone, task, images)
        if not self.memory.tasks:
            return memory
        arrays = own_arrays(model)
        classes = {name: self.memory.classes(name) for name in self.memory.tasks}
        kernel, bias = (arrays[f"{OLD_HEADS_NAME}/{name}"] for name in ("kernel", "bias"))
        return memory.with_changed(split_heads(kernel, bias, classes))
