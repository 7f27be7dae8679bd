"""What methods share that learn on with some images of earlier tasks.

After a task a uniform sample of its training images is kept, uint8 as they are prepared for evaluation, with their
labels. All tasks have equal shares of `replay_images`: each new task makes those of the others smaller. A training step
draws some of the kept images, whatever their tasks, and none of them twice. It sees them in inference mode: batch norm
does not learn from them, and dropout leaves them alone. Each is judged by the head of its own task. Old heads are
trained with the rest.

Which images a step draws is a function of (seed, epoch, step), so that a training that goes on draws what it would
have drawn. They are not augmented.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.importance import sample_images
from piggyback_tf.methods.parts.many_heads import OldHeadsNetwork, own_head, own_logits
from piggyback_tf.methods.parts.memory import Arrays, Memory
from piggyback_tf.methods.parts.separate_gradients import PassingLayer
from piggyback_tf.settings.methods.replay import ReplayConfig

DRAWS_NAME = "draws"


class Draws(PassingLayer):
    """Holds which of the kept images a training step sees. It has no weights, since that follows from the step.

    Args:
        seed: Decides what is drawn.
        images: How many images are kept.
        size: How many are drawn at a time; all if there are no more.
        times: How often in a step.
        **kwargs: As for `keras.layers.Layer`.

    Attributes:
        rows: The places of the images, int64 `[times, size]`.
    """

    def __init__(self, seed: int, images: int, size: int, times: int, **kwargs: Any):
        super().__init__(**kwargs)
        self._seed, self._images, self._size, self._times = seed, images, min(size, images), times
        # GPUs have no variables of int32.
        self.rows = tf.Variable(self._drawn(0, 0), trainable=False, dtype=tf.int64, name="rows")

    def draw(self, epoch: int, step: int) -> None:
        """Draws anew.

        Args:
            epoch: Counted from 0, over the whole training.
            step: Counted from 0, within the epoch.
        """
        self.rows.assign(self._drawn(epoch, step))

    def _drawn(self, epoch: int, step: int) -> np.ndarray:
        # The 2 keeps this apart from the orders of images, which start from seed and epoch.
        generator = np.random.default_rng([self._seed, epoch, step, 2])
        return np.stack([generator.permutation(self._images)[: self._size] for _ in range(self._times)])


class DrawRows(keras.callbacks.Callback):
    """Draws kept images for each step of a training.

    Args:
        draws: The layer that holds which they are.
    """

    def __init__(self, draws: Draws):
        super().__init__()
        self._draws = draws
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._draws.draw(self._epoch, batch)


class KeptImages:
    """What is drawn of the kept images, and what a network with old heads answers to it.

    Args:
        memory: With the kept images of at least one task.
        model: From images to the logits of all heads, those of the old ones last.
    """

    def __init__(self, memory: Memory, model: keras.Model):
        self._model = model
        self._classes = [memory.classes(task) for task in memory.tasks]
        firsts, places = np.cumsum([0, *self._classes]), range(len(self._classes))
        kept = memory.learning
        # Tensors, since the graph of a training step would hold a copy of an array.
        self._images = tf.constant(np.concatenate([kept[f"{place}/images"] for place in places]))
        labels = [kept[f"{place}/labels"] + firsts[place] for place in places]
        self._labels = tf.constant(np.concatenate(labels), tf.int32)
        self._answers = None
        if "0/logits" in kept:
            wide = [_widened(kept[f"{place}/logits"], firsts[place], firsts[-1]) for place in places]
            self._answers = tf.constant(np.concatenate(wide))

    def cross_entropy(self, time: int) -> tf.Tensor:
        """Returns the mean cross-entropy of what is drawn, each image by its own task's head.

        Args:
            time: Which of the draws of the step.
        """
        labels, logits, _, weights = self._drawn(time)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, own_logits(labels, logits, self._classes))
        return tf.reduce_sum(weights * losses)

    def distance(self, time: int) -> tf.Tensor:
        """Returns the mean squared distance, over classes and images, of the logits from those that are kept.

        Args:
            time: Which of the draws of the step.
        """
        labels, logits, kept, weights = self._drawn(time)
        own = tf.cast(own_head(labels, self._classes), tf.float32)
        means = tf.reduce_sum(own * tf.square(logits - kept), axis=1) / tf.reduce_sum(own, axis=1)
        return tf.reduce_sum(weights * means)

    def _drawn(self, time: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None, tf.Tensor]:
        """Returns labels, logits and kept logits of the images, and what each weighs in their mean.

        On one of several devices they are a part of the images. Its sum, divided by the number of devices as an added
        loss is, is its part of the mean.
        """
        rows = self._model.get_layer(DRAWS_NAME).rows[time]
        count, devices = rows.shape[0], tf.distribute.get_strategy().num_replicas_in_sync
        weights = tf.fill([count], 1.0 / count)
        if devices > 1:
            each = -(-count // devices)
            places = tf.distribute.get_replica_context().replica_id_in_sync_group * each + tf.range(each)
            # The last device has fewer, and sees some twice, which then weigh nothing.
            weights = tf.where(places < count, devices / count, 0.0)
            rows = tf.gather(rows, places % count)
        labels = tf.gather(self._labels, rows)
        images = tf.cast(tf.gather(self._images, rows), tf.float32)
        logits = self._model(images, training=False)[:, -sum(self._classes) :]
        return labels, logits, None if self._answers is None else tf.gather(self._answers, rows), weights


class ReplayNetwork(OldHeadsNetwork):
    """A method with one network for all tasks, that keeps images of the earlier ones."""

    Config = ReplayConfig
    config: ReplayConfig
    # How often a training step draws from the kept images.
    times: ClassVar[int] = 1

    def check_room(self, backbone: Backbone, tasks: int) -> None:
        super().check_room(backbone, tasks)
        self._share(tasks)

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        network = super().feature_model(backbone, seed)
        if not self.memory.tasks:
            return network
        count = sum(len(self.memory.learning[f"{place}/labels"]) for place in range(len(self.memory.tasks)))
        draws = Draws(seed, count, self.config.replay_batch, self.times, name=DRAWS_NAME)
        return keras.Model(network.input, draws(network.output), name=network.name)

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        del backbone
        return self.replayed(KeptImages(self.memory, model)) if self.memory.tasks else None

    def replayed(self, kept: KeptImages) -> AddedLoss:
        """Returns what computes the loss of kept images: here, the mean cross-entropy of those that a step draws."""
        return lambda images, answers: kept.cross_entropy(0)

    def callbacks(self, model: keras.Model) -> list[keras.callbacks.Callback]:
        return [DrawRows(model.get_layer(DRAWS_NAME))] if self.memory.tasks else []

    def kept_of(self, model: keras.Model, images: np.ndarray) -> Arrays:
        """Returns what is kept of some images besides themselves and their labels, by name; nothing, for most.

        Args:
            model: What `build` returned, trained.
            images: uint8 `[N, S, S, 3]`.
        """
        del model, images
        return {}

    def remember(self, model: keras.Model, backbone: Backbone, task: str, images: Iterable[Any]) -> Memory:
        memory, number = super().remember(model, backbone, task, []), len(self.memory.tasks)
        share = self._share(number + 1)
        sample = list(sample_images(images, share))
        if not sample:
            raise ValueError(f"There are no images of task {task!r} to keep.")
        # Any part of it that begins with the first is to be a uniform sample, too, which that of a stream is not.
        order = np.random.default_rng(number).permutation(len(sample))
        pictures = np.stack([sample[place][0] for place in order]).astype(np.uint8)
        labels = np.array([sample[place][1] for place in order], np.int32)
        kept = {name: array[:share] for name, array in self.memory.learning.items()}
        new: dict[str, np.ndarray] = {"images": pictures, "labels": labels, **self.kept_of(model, pictures)}
        return dataclasses.replace(memory, learning=kept | {f"{number}/{name}": new[name] for name in new})

    def _share(self, tasks: int) -> int:
        """Returns how many images are kept of each of some tasks."""
        if tasks > self.config.replay_images:
            raise ValueError(
                f"`replay_images` must be at least 1 for each task, of which there are {tasks}. Received: "
                f"replay_images={self.config.replay_images}."
            )
        return self.config.replay_images // tasks


def _widened(logits: np.ndarray, first: int, classes: int) -> np.ndarray:
    """Returns logits `[N, C]` at their place among those of all heads, `[N, classes]`, with zeros elsewhere."""
    wide = np.zeros((len(logits), classes), np.float32)
    wide[:, first : first + logits.shape[1]] = logits
    return wide
