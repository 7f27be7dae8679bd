"""Memory aware synapses (Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars, ECCV 2018; arXiv 1711.09601).

One network learns task after task. A weight matters for a task as much as the length of what the network answers
depends on it (equations 2 and 3, with the squared length of section 4.1), over N images of the task

    Omega = 1 / N * sum over images of | d ||logits||^2 / d weight |

No label is needed. The next task's loss is (equation 4)

    loss of the labels + lambda * sum over weights of Omega * (weight - old) ** 2

with `old`, the weights after the task before, and Omega summed over all tasks so far.

The gradient is taken image by image, as the equations say; the authors' code takes that of a batch. The logits are
those of the task's own head, for the best epoch's weights. With lambda 0 the method is `finetune_sequential`, whose
optimisers and schedule it has; the paper's are for AlexNet. The default of lambda is the paper's.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.held_network import HeldNetwork
from piggyback_tf.methods.parts.importance import mean_over_images, penalised_variables, sample_images
from piggyback_tf.methods.parts.memory import Arrays
from piggyback_tf.settings.methods.mas import MASConfig


@METHODS.register("mas")
class MAS(HeldNetwork):
    """Trains one network on task after task, and holds the weights on which its answers depend."""

    Config = MASConfig
    config: MASConfig

    @property
    def strength(self) -> float:
        return self.config.mas_lambda

    def importance(self, model: keras.Model, backbone: Backbone, images: Iterable[Any]) -> Arrays:
        del backbone
        sample = sample_images(images, self.config.mas_images)
        return mean_over_images(model, penalised_variables(model), sample, _squared_length, tf.abs)


def _squared_length(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    del labels
    return tf.reduce_sum(tf.square(logits))
