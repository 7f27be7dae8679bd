"""Learning without Forgetting (Li and Hoiem, ECCV 2016; TPAMI 40, 2018; arXiv 1606.09282).

One network learns task after task. While it learns a new one it is held, on the new task's images, to the answers that
the network of before gives for the earlier tasks. As in section 3 and figure 3 of the paper:

1. A copy of the network of before records, for each training image as it is augmented, the responses of the old heads.
2. Warm-up: the new head alone is trained.
3. Network, old heads and new head are trained together on

       cross-entropy of the new task + weight * sum over old heads of D(recorded, old head)

   where D (equations 2 to 4) compares the probabilities `softmax(logits / T)` of both at the temperature T = 2.

D is the Kullback-Leibler divergence, which differs from the paper's cross-entropy by the entropy of the recorded
responses, a constant: its gradients are the same, and it is 0 where nothing is forgotten. As in the paper, and unlike
in Hinton's distillation, it is not multiplied by T ** 2. Optimisers and schedule are those of `finetune`, as the paper
follows the usual practice of fine-tuning; its weight decay is left out.
"""

import functools
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_batch_norm, named_layers
from piggyback_tf.masking import share
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.many_heads import OLD_HEADS_NAME, OldHeadsNetwork, join_heads
from piggyback_tf.problems import HEAD_NAME, HeadSpec, add_head
from piggyback_tf.settings.methods.lwf import LwFConfig


class Distillation:
    """How far the answers of several heads are from recorded ones (equations 2 to 4 of the paper): an `AddedLoss`.

    Args:
        record: Returns the recorded logits `[B, O]` of images.
        classes: The number of classes of each old head, `O` together.
        old_heads: The layer of the old heads. While it is not trained, as in the warm-up, nothing that old answers
            depend on is, and there is no loss.
        config: Temperature and weight.
    """

    def __init__(
        self,
        record: Callable[[tf.Tensor], tf.Tensor],
        classes: Sequence[int],
        old_heads: keras.layers.Layer,
        config: LwFConfig,
    ):
        self.record = record
        self.classes = list(classes)
        self.old_heads = old_heads
        self.config = config

    def __call__(self, images: tf.Tensor, answers: tf.Tensor) -> tf.Tensor | None:
        """Returns the weighted divergence of each image, `[B]`; of answers `[B, C + O]` the last are the old heads'."""
        if not self.old_heads.trainable:
            return None
        recorded, now = (
            [tf.nn.log_softmax(part) for part in tf.split(logits / self.config.lwf_temperature, self.classes, axis=1)]
            for logits in (self.record(images), answers[:, -sum(self.classes) :])
        )
        divergences = [tf.reduce_sum(tf.exp(old) * (old - new), axis=1) for old, new in zip(recorded, now, strict=True)]
        return self.config.lwf_weight * tf.add_n(divergences)


@METHODS.register("lwf")
class LwF(OldHeadsNetwork):
    """Trains one network on task after task, and keeps the old heads' answers to the new task's images."""

    Config = LwFConfig
    config: LwFConfig

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        if not self.memory.tasks:
            return None
        classes = [self.memory.classes(task) for task in self.memory.tasks]
        before = add_head(self.feature_model(backbone, seed=0), HeadSpec.of(sum(classes)))
        before.get_layer(HEAD_NAME).set_weights(join_heads(self.memory))
        # Nothing of the shared copy can be trained, and it is no part of the model: a training state leaves it out.
        record = functools.partial(share(before), training=False)
        return Distillation(record, classes, model.get_layer(OLD_HEADS_NAME), self.config)

    def phases(self, epochs: int) -> tuple[int, ...]:
        if not self.config.lwf_warmup:
            return (epochs,)
        warmup = max(1, round(self.config.lwf_warmup * epochs))
        if warmup >= epochs:
            raise ValueError(
                f"Method 'lwf' needs an epoch of warm-up and one after it: lwf_warmup={self.config.lwf_warmup} leaves "
                f"none of epochs={epochs}. Set more epochs, or lwf_warmup=0."
            )
        return warmup, epochs - warmup

    def begin_phase(self, model: keras.Model, phase: int) -> keras.Model:
        warmup = self.config.lwf_warmup > 0 and phase == 0
        for path, layer in named_layers(model):
            if warmup:
                layer.trainable = path == HEAD_NAME
            else:
                layer.trainable = self.config.norm == "task" or not is_batch_norm(layer)
        return model
