"""One optimiser per kind of variable, and the limit on flips that keeps masks stable."""

import dataclasses
import math
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.masking import MaskConfig, mask_config
from piggyback_tf.masking.threshold import binarise, ternarise
from piggyback_tf.methods import Method
from piggyback_tf.training.config import TrainConfig
from piggyback_tf.training.schedules import WarmupSchedule, warmup_length

# Weights of a layer that are looked at to foresee its flips. A limit of 1e-3 is then 65 of them, and looking costs
# nothing beside the update.
_SAMPLE = 65536


@keras.saving.register_keras_serializable(package="piggyback_tf")
class FlipLimitedAdam(keras.optimizers.Adam):
    """Adam for real-valued masks that shortens a layer's step when too many weights would flip at once.

    Adam moves every `mask_real` by about the learning rate, whatever its gradient, so that large parts of a layer can
    cross the threshold in the same few steps. Batch norm's frozen statistics then no longer fit, and training
    collapses. Here a layer's step is multiplied by `min(1, max_flips / flips)`, where `flips` is the fraction of the
    layer's mask that the full step would change; Adam's moments are kept as they are.

    Args:
        learning_rate: A rate or a schedule.
        max_flips: Largest fraction of a layer's mask to change in one step; a number or, so that flips become rarer
            as the rate falls, a schedule.
        threshold: Threshold of the masks.
        kind: `"binary"` or `"ternary"`.
        **kwargs: As for `keras.optimizers.Adam`; without AMSGrad.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        max_flips: Any = 1e-3,
        threshold: float = 5e-3,
        kind: str = "binary",
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        if self.amsgrad:
            raise ValueError("FlipLimitedAdam foresees the step of plain Adam; AMSGrad is not supported.")
        self.max_flips = max_flips
        self.threshold = threshold
        self.kind = kind

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        # The formulas and their order are those of `keras.optimizers.Adam`, whose bits an unshortened step has.
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        gradient = tf.cast(gradient, variable.dtype)
        count = tf.cast(self.iterations + 1, variable.dtype)
        rate = tf.cast(learning_rate, variable.dtype) * tf.sqrt(1 - tf.pow(self.beta_2, count))
        rate /= 1 - tf.pow(self.beta_1, count)
        self.assign_add(mean, (gradient - mean.value) * (1 - self.beta_1))
        self.assign_add(square, (tf.square(gradient) - square.value) * (1 - self.beta_2))
        # The step is linear in the rate: shortening it is scaling the rate, at no cost.
        rate *= self._shortening(variable, mean.value, square.value, rate)
        self.assign_sub(variable, mean.value * rate / (tf.sqrt(square.value) + self.epsilon))

    def _shortening(self, variable: tf.Variable, mean: tf.Tensor, square: tf.Tensor, rate: tf.Tensor) -> tf.Tensor:
        """Returns by what to multiply a layer's step so that no more than the limit of its mask flips."""
        size = math.prod(variable.shape)
        stride = -(-size // _SAMPLE)
        stride += 1 - stride % 2  # Odd, so that channels in powers of two are all visited.

        def sample(tensor: Any) -> tf.Tensor:
            flat = tf.reshape(tensor, [-1])
            return flat[::stride] if stride > 1 else flat

        before = sample(variable)
        after = before - sample(mean) * rate / (tf.sqrt(sample(square)) + self.epsilon)
        mask = ternarise if self.kind == "ternary" else binarise
        changed = mask(before, self.threshold) != mask(after, self.threshold)
        flips = tf.reduce_mean(tf.cast(changed, tf.float32))
        limit = self.max_flips(self.iterations) if callable(self.max_flips) else tf.constant(self.max_flips)
        # The limit may be 0, as at the end of a cosine; then only a step that flips nothing is taken as it is.
        return tf.where(flips > limit, tf.math.divide_no_nan(limit, flips), 1.0)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        max_flips = self.max_flips
        if callable(max_flips):
            max_flips = keras.optimizers.schedules.serialize(max_flips)
        return {**config, "max_flips": max_flips, "threshold": self.threshold, "kind": self.kind}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "FlipLimitedAdam":
        config = dict(config)
        if isinstance(config["max_flips"], dict):
            config["max_flips"] = keras.optimizers.schedules.deserialize(config["max_flips"], custom_objects)
        return super().from_config(config, custom_objects)


def make_optimizer(
    method: Method, model: keras.Model, config: TrainConfig, steps_per_epoch: int, epochs: int | None = None
) -> keras.optimizers.Optimizer:
    """Returns a `MultiOptimizer` with one optimiser and schedule for each group of variables.

    Args:
        method: Says which group each variable of the model is in.
        model: The task's model.
        config: Optimisers, learning rates and schedule.
        steps_per_epoch: Steps of one epoch.
        epochs: Epochs of the phase; all epochs if None.

    Raises:
        ValueError: If the flips are to be limited with another optimiser than Adam.
    """
    groups = method.groups(model)
    masks = mask_config(model)
    config = dataclasses.replace(config, epochs=epochs or config.epochs)
    optimizers = {group: _group_optimizer(group, masks, config, steps_per_epoch) for group in groups}
    for group, optimizer in optimizers.items():
        optimizer.name = group  # By which the state of a training is kept.
    by_variable = {id(variable): optimizers[group] for group, members in groups.items() for variable in members}
    return keras.optimizers.MultiOptimizer(lambda variable: by_variable[id(variable)])


def _group_optimizer(
    group: str, masks: MaskConfig | None, config: TrainConfig, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    epochs = config.step_epochs or max(1, config.epochs // 2)
    total_steps = config.epochs * steps_per_epoch

    def schedule(peak: float) -> WarmupSchedule:
        return WarmupSchedule(
            peak,
            config.schedule,
            total_steps=total_steps,
            # A random head gives every other variable noise for a gradient; it is the one that must learn at once.
            warmup_steps=0 if group == "head" else warmup_length(config.warmup_steps, total_steps),
            step_length=epochs * steps_per_epoch,
            step_decay=config.step_decay,
        )

    rate = schedule(getattr(config, f"{group}_lr"))
    kind = getattr(config, f"{group}_optimizer")
    limited = group == "mask" and config.max_flips > 0
    if kind == "sgd":
        if limited:
            raise ValueError("`max_flips` foresees the steps of Adam. With mask_optimizer='sgd' set max_flips to 0.")
        return keras.optimizers.SGD(rate, momentum=config.sgd_momentum)
    if limited:
        return FlipLimitedAdam(
            rate,
            max_flips=schedule(config.max_flips),
            threshold=masks.threshold,
            kind=masks.kind,
            epsilon=config.mask_epsilon,
        )
    return keras.optimizers.Adam(rate, epsilon=config.mask_epsilon if group == "mask" else config.adam_epsilon)
