"""Joint training: one network for all tasks, trained on the images of all of them (Caruana, Machine Learning 28, 1997).

It needs what a sequence does not have, all data at once, and so is what methods that learn tasks one after another are
measured against: "joint training" in Learning without Forgetting (Li and Hoiem, ECCV 2016, section 2 and figure 2) and
in PackNet (Mallya and Lazebnik, CVPR 2018). There is no equation of its own: the loss is the mean cross-entropy over
the images of a batch, whatever their tasks, each by the head of its own task. Tasks count by their images. Optimisers
and schedule are those of `finetune`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.data import TaskData
from piggyback_tf.data.joined import join_tasks
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.many_heads import own_logits, split_heads
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.methods.parts.shared_network import SharedNetwork
from piggyback_tf.problems import HEAD_NAME, HeadSpec
from piggyback_tf.settings.methods.joint import JointConfig
from piggyback_tf.surgery import own_arrays


@keras.saving.register_keras_serializable(package="piggyback_tf")
class JointModel(keras.Model):
    """A functional model whose logits `[B, C]` are those of several heads, side by side.

    Loss and metrics of an image see the logits of the head that its label is of, and no others.

    Args:
        *args: As for a functional `keras.Model`.
        classes: The number of classes of each head, `C` together.
        **kwargs: As for a functional `keras.Model`.
    """

    def __init__(self, *args: Any, classes: Sequence[int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.classes = tuple(classes)

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> tf.Tensor:
        return super().compute_loss(x, y, own_logits(y, y_pred, self.classes), sample_weight, training)

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        return super().compute_metrics(x, y, own_logits(y, y_pred, self.classes), sample_weight)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "classes": list(self.classes)}


@METHODS.register("joint")
class Joint(SharedNetwork):
    """Trains one network and a head for each task on the images of all tasks together."""

    Config = JointConfig
    config: JointConfig
    sequential = False

    def build(self, backbone: Backbone, head: HeadSpec | int, seed: int = 0) -> keras.Model:
        """Returns the network with the heads of all tasks, whose logits lie in the order of `heads`.

        Raises:
            ValueError: If the tasks are not known, have not as many classes together, or one has fewer than two.
        """
        if not self.heads:
            raise ValueError(
                "Method 'joint' learns several tasks at once and was given one; give it --tasks=NAME=DATA,NAME=DATA, "
                "or use method 'finetune'."
            )
        classes, num_classes = list(self.heads.values()), HeadSpec.of(head).classes
        if sum(classes) != num_classes:
            raise ValueError(
                f"The tasks {', '.join(self.heads)} have {sum(classes)} classes together. Received: {num_classes}."
            )
        if small := [task for task, count in self.heads.items() if count < 2]:
            raise ValueError(f"A classification head needs at least 2 classes; task {small[0]!r} has fewer.")
        model = super().build(backbone, head, seed)
        return JointModel(inputs=model.input, outputs=model.output, name=model.name, classes=classes)

    def training_data(self, tasks: Mapping[str, TaskData]) -> TaskData:
        return join_tasks(tasks)

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        del task, images  # All tasks were learned, not this one alone.
        arrays, memory = own_arrays(model), self.memory
        shared = {path: arrays[path] for path in named_variables(backbone.model)}
        heads = split_heads(arrays[f"{HEAD_NAME}/kernel"], arrays[f"{HEAD_NAME}/bias"], self.heads)
        for name, head in heads.items():
            memory = memory.with_task(name, head, shared=shared)
        return memory
