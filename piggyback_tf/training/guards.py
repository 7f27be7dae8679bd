"""What ends a training that has gone wrong: a loss that is no number or stays at chance, features that died."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from piggyback_tf.backbones.endpoints import Endpoint
from piggyback_tf.problems import features_of
from piggyback_tf.training.errors import TrainingError

# A loss within 2 % of guessing counts as guessing, one within 2 % of an earlier one as no lower.
_MARGIN = 0.98
# In fewer steps a loss may stay at that of guessing though all is well: with few images an epoch is one step or two.
STEPS_TO_JUDGE = 20
# Features that differ by less than this part of what they did are dead. Of networks that died 2e-4 was the most.
_DEAD = 0.01


class StopOnNaN(keras.callbacks.Callback):
    """Ends a training whose loss is NaN or infinite, with a sentence that says what to change.

    Args:
        method: What is trained, for the message.
        groups: The groups of variables that have a learning rate.
    """

    def __init__(self, method: str, groups: Iterable[str]):
        super().__init__()
        self.method = method
        self.groups = tuple(groups)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not np.isfinite(loss):
            mixed = keras.config.dtype_policy().name.startswith("mixed_")
            precision = ", or set --mixed_precision=none" if mixed else ""
            raise TrainingError(
                f"The loss of {self.method} became {loss} at step {batch + 1} of the epoch. Lower the learning rates "
                f"({', '.join(f'--{group}_lr' for group in self.groups)}) or raise --warmup_steps{precision}."
            )


class StopAtChance(keras.callbacks.Callback):
    """Ends a training whose cross-entropy stays at that of guessing, or above it.

    A run is stopped when, over a window of epochs, none was below chance and the last is no lower than the first. The
    loss may be higher by what a method adds to it, such as the size of HAT's gates; that is not looked at.

    Args:
        chance: The cross-entropy of guessing; see `Problem.chance`.
        epochs: Length of the window.
        first_epoch: Epochs before this one, counted from 0, do not count: the warm-up.
        losses: Cross-entropies of the epochs already done, of a resumed training.
    """

    def __init__(self, chance: float, epochs: int, first_epoch: int, losses: Sequence[float] = ()):
        super().__init__()
        self.chance = chance
        self.epochs = epochs
        self.first_epoch = first_epoch
        self.losses = list(losses)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # A run that was stopped here and is started again is where it was.
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.losses.append(float(logs["cross_entropy"]))
        self._check()

    def _check(self) -> None:
        window = self.losses[self.first_epoch :][-self.epochs :]
        if len(window) < self.epochs or min(window) < _MARGIN * self.chance or window[-1] < _MARGIN * window[0]:
            return
        raise TrainingError(
            f"Nothing is learned: the cross-entropy in training was {window[0]:.3f} {self.epochs} epochs ago and is "
            f"{window[-1]:.3f}; guessing gives {self.chance:.3f}. The training ends here, without a task. What helps "
            "most is a network that was trained on images like these (--backbone, --weights, --image_size); one with "
            "random weights learns little in a few epochs. Then a higher --head_lr; and where the loss was lower "
            "before, a lower --mask_lr, --mask_trust or --weights_lr. The same command with --chance_epochs=0 goes on "
            "to the end regardless."
        )


class StopWhenDead(keras.callbacks.Callback):
    """Ends a training whose features no longer tell one image from another.

    Masks that drop too much at once leave features that are the same for every image, and with the features the
    gradient is gone: nothing that follows can mend that. Between such a network and a healthy one there are orders of
    magnitude, so that one look after each epoch is enough.

    Args:
        images: Some images, prepared for evaluation, `[B, S, S, 3]`.
        network: The frozen network, without a head, as it was before the training.
        endpoints: What the head builds on; none for the features.
    """

    def __init__(self, images: tf.Tensor, network: keras.Model, endpoints: Sequence[Endpoint] = ()):
        super().__init__()
        self.images, self._endpoints = images, endpoints
        self._healthy = _spread(features_of(network, endpoints), images)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        # A run that was stopped here and is started again is where it was.
        self._check()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._check()

    def _check(self) -> None:
        spread = _spread(features_of(self.model, self._endpoints), self.images)
        if spread >= _DEAD * self._healthy:
            return
        raise TrainingError(
            f"The network has died: its features differ from image to image by {spread / self._healthy:.1e} of what "
            "they did before the masks. Too many weights were dropped at once. Lower --mask_lr or --mask_trust, or use "
            "the defaults. The training ends here, without a task. The same command with --chance_epochs=0 goes on to "
            "the end regardless."
        )


def _spread(features: keras.Model, images: tf.Tensor) -> float:
    """Returns the standard deviation of features over images, averaged in the square over the features."""
    # Not Keras' predict: within a strategy's scope it would run the batch on every device.
    found = tf.cast(features(images, training=False), tf.float32)
    return float(tf.sqrt(tf.reduce_mean(tf.math.reduce_variance(found, axis=0))))
