"""One optimiser per kind of variable."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from piggyback_tf.masking import MaskConfig, mask_config, masked_weights
from piggyback_tf.methods import Method
from piggyback_tf.problems import Problem
from piggyback_tf.settings import TrainConfig
from piggyback_tf.training.schedules import HEAD_RATE, WarmupSchedule, head_rate, mask_rate, warmup_length
from piggyback_tf.training.trust_region import TrustRegionAdam, WatchedLossScale, WatchedOptimizers

# Rates above these are doubted. Adam moves each weight by about its rate, and weights are rarely as large as 1.
_LARGEST_ADAM, _LARGEST_SGD = 0.5, 100.0


def make_optimizer(
    method: Method,
    model: keras.Model,
    config: TrainConfig,
    steps_per_epoch: int,
    epochs: int | None = None,
    problem: Problem | None = None,
) -> keras.optimizers.Optimizer:
    """Returns an optimiser with one optimiser and schedule for each group of variables, scaled in float16.

    It is a `keras.optimizers.MultiOptimizer`, which gives each variable to the optimiser of its group, and which `fit`
    takes as any other. A loop of one's own calls `build(model.trainable_variables)` once. In each step it calls
    `scale_loss(loss)` before it takes gradients, so that the masks' optimiser knows the loss, and then `apply`; see
    docs/own-loops.md.

    Args:
        method: Says which group each variable of the model is in.
        model: The task's model.
        config: Optimisers, learning rates and schedule.
        steps_per_epoch: Steps of one epoch.
        epochs: Epochs of the phase; all epochs if None.
        problem: Says how careful masks must be; as with classes if None.

    Raises:
        ValueError: If the masks' optimiser is SGD, and flips are to be limited or no rate is given, or gradients are to
            be sent in half precision and there is one device.
    """
    groups = method.groups(model)
    config = dataclasses.replace(config, epochs=epochs or config.epochs)
    optimizers = {
        group: _group_optimizer(group, model, variables, config, steps_per_epoch, problem)
        for group, variables in groups.items()
    }
    for group, optimizer in optimizers.items():
        optimizer.name = group  # By which the state of a training is kept.
    by_variable = {id(variable): optimizers[group] for group, members in groups.items() for variable in members}
    sent_as = {"mask": config.mask_gradients} if config.mask_gradients != "float32" else {}
    if sent_as and tf.distribute.get_strategy().num_replicas_in_sync == 1:
        raise ValueError(
            f"mask_gradients={config.mask_gradients!r} is for several machines: one device sends no gradients. Leave "
            "it out."
        )
    optimizer = WatchedOptimizers(lambda variable: by_variable[id(variable)], sent_as)
    # Keras would do so by itself when it compiles the model, and the optimisers would not learn of the loss.
    return WatchedLossScale(optimizer) if keras.config.dtype_policy().name == "mixed_float16" else optimizer


def _group_optimizer(
    group: str,
    model: keras.Model,
    variables: Sequence[keras.Variable],
    config: TrainConfig,
    steps_per_epoch: int,
    problem: Problem | None,
) -> keras.optimizers.Optimizer:
    """Returns the optimiser of a group's variables."""
    epochs = config.step_epochs or max(1, config.epochs // 2)
    total_steps = config.epochs * steps_per_epoch
    masks = mask_config(model)

    def schedule(peak: float, first_step: int = 0) -> WarmupSchedule:
        return WarmupSchedule(
            peak,
            config.schedule,
            total_steps=total_steps,
            # A random head gives every other variable noise for a gradient; it is the one that must learn at once.
            warmup_steps=0 if group == "head" else warmup_length(config.warmup_steps, total_steps),
            step_length=epochs * steps_per_epoch,
            step_decay=config.step_decay,
            first_step=first_step,
        )

    peak = getattr(config, f"{group}_lr")
    kind = getattr(config, f"{group}_optimizer")
    if doubt := _doubt(group, kind, peak, masks):
        logging.warning("--%s_lr=%g: %s", group, peak, doubt)
    if group == "mask" and not peak:
        if kind == "sgd":
            raise ValueError("With mask_optimizer='sgd' set mask_lr, which follows from the steps for Adam alone.")
        peak = mask_rate(masks, total_steps)
    if group == "head" and not peak:
        # A step of SGD is in proportion to the features by itself.
        shapes = {variable.path: tuple(variable.shape) for variable in variables}
        peak = head_rate(shapes) if kind == "adam" else HEAD_RATE
    limited = group == "mask" and config.mask_trust > 0
    if kind == "sgd":
        if limited:
            raise ValueError("`mask_trust` foresees the steps of Adam. With mask_optimizer='sgd' set mask_trust to 0.")
        return keras.optimizers.SGD(schedule(peak), momentum=config.sgd_momentum)
    if group == "mask" and not _reaches_threshold(schedule(peak), masks, total_steps):
        logging.warning(
            "In %d steps at this rate no mask comes to the threshold: only the head will learn. Raise --mask_lr or "
            "--epochs, or lower --warmup_steps.",
            total_steps,
        )
    if limited:
        trust, head_first = (problem.mask_trust, problem.head_first) if problem else (1.0, 0.0)
        kernels = {id(w.mask_real): w.layer.frozen_weight(w.weight) for w in masked_weights(model).values()}
        return TrustRegionAdam(
            schedule(peak),
            [kernels[id(variable)] for variable in variables],
            trust=trust * config.mask_trust,
            max_flips=schedule(2.0 * config.mask_budget / total_steps, first_step=int(head_first * total_steps)),
            threshold=masks.threshold,
            kind=masks.kind,
            gradient_scaling=masks.gradient_scaling,
            epsilon=config.mask_epsilon,
        )
    return keras.optimizers.Adam(
        schedule(peak), epsilon=config.mask_epsilon if group == "mask" else config.adam_epsilon
    )


def _doubt(group: str, kind: str, peak: float | None, masks: MaskConfig | None) -> str | None:
    """Returns what is to be said of a rate that was given and is out of all proportion; None if it is not."""
    if not peak or kind == "sgd":
        # How far that goes depends on the gradients.
        return None if not peak or peak <= _LARGEST_SGD else f"usual rates of SGD are below {_LARGEST_SGD:g}."
    if group == "mask":
        if peak > masks.distance:
            return (
                f"masks start {masks.distance:g} from the threshold, so that a single step of Adam carries any of them "
                "over it, whatever its gradient is. Leave the flag out: the rate then follows from the number of steps."
            )
        return None
    if peak > _LARGEST_ADAM:
        return f"a step of Adam moves every weight by up to that much; usual rates are below {_LARGEST_ADAM:g}."
    return None


def _reaches_threshold(rate: WarmupSchedule, masks: MaskConfig, total_steps: int) -> bool:
    """Whether Adam's steps in one direction would carry a mask that starts at its scale over the threshold."""
    places = np.linspace(0, total_steps - 1, min(total_steps, 1000), dtype=np.float32)
    way = float(np.mean(rate(places))) * total_steps
    return masks.init != "constant" or way > masks.scale - masks.threshold
