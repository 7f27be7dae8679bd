"""Adam for real-valued masks whose flips stay within what the gradient can foretell.

Dropping a weight `W` changes the loss by about `-dE/dm`, with `dE/dm = dE/dW' * W` (equations 5 to 7 of Mallya, Davis,
Lazebnik, ECCV 2018): that is what its flip *promises*. The promise holds for small changes of the network alone. All
masks start equally far from the threshold, Adam moves all of them equally fast, and so a large part of a network comes
to the threshold in the same few steps. Together these weights promise many times the whole loss. If they flip, features
die.

So of the weights that come to the threshold in a step only some flip. The others stay where they are, and are asked
again in the next step, when the gradient knows of those that flipped. Those flip that change the network least for what
they promise, by `|dE/dm| / W^2`, as long as

- they promise together no more than `trust` of the loss, and
- they are no more than `max_flips` of all masked weights. Promises are small while the head is near zero, and then only
  this limit holds.

Both limits are for a network that does what was promised. While the loss, averaged over a few steps, is higher than it
has been, by more than steps differ by chance, they are halved in each step, down to a hundredth. A network too deep or
too badly scaled for such changes then learns by its head, and does not die.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.masking.threshold import binarise, promise_factor, ternarise

# Of each layer at most so many weights are looked at to see how many may flip.
_SAMPLE = 8192
# A weight that alone promises more than this part of what a step may promise does not flip: a change so large is not
# what its gradient speaks of.
_LARGEST_SHARE = 0.1
# Weights are told apart by |dE/dm| / W^2 in steps of an eighth of an octave.
_BINS, _BINS_PER_OCTAVE = 1024, 8
# How much of the two averages of the loss is of the steps before. The loss is too high where the short one is above the
# lowest long one by this part of the standard deviation of single steps, or more.
_SHORT, _LONG, _MARGIN = 0.8, 0.95, 0.5
# By what the limits are multiplied in a step in which the loss is too high, and in any other until they are whole.
_LESS, _MORE, _LEAST = 0.5, 1.05, 0.01


@dataclasses.dataclass(frozen=True)
class _Arithmetic:
    """What a step computes, without what it keeps from one to the next; see `TrustRegionAdam` for the numbers."""

    beta_1: float
    beta_2: float
    epsilon: float
    threshold: float
    kind: str
    gradient_scaling: str

    def sampled(
        self,
        layers: Sequence[tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]],
        rates: tf.Tensor,
        largest: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns of a sample of all weights which flip, their bins by score, and what they promise and are.

        Returns:
            bool `[N]`, int32 `[N]`, and float32 `[N, 2]`: the promise of all weights for which one of the sample
            stands, and how many they are.
        """
        parts = [self._sampled_layer(*layer, rates, largest) for layer in layers]
        return tuple(tf.concat(part, axis=0) for part in zip(*parts, strict=True))

    def _sampled_layer(
        self,
        before: tf.Tensor,
        gradient: tf.Tensor,
        mean: tf.Tensor,
        square: tf.Tensor,
        kernel: tf.Tensor,
        rates: tf.Tensor,
        largest: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        size = math.prod(before.shape)
        stride = -(-size // _SAMPLE)
        stride += 1 - stride % 2  # Odd, so that channels in powers of two are all visited.
        factor = promise_factor(kernel, self.gradient_scaling) * tf.ones_like(kernel, tf.float32)
        rows = [tf.reshape(row, [-1])[::stride] for row in (before, gradient, mean, square, kernel, factor)]
        before, gradient, mean, square, kernel, factor = (tf.cast(row, tf.float32) for row in rows)
        after, mean, _ = self._adam(before, gradient, mean, square, rates)
        promise = self._promise(mean, rates) * factor
        score = tf.math.divide_no_nan(promise, tf.square(kernel))
        octave = tf.math.log(tf.maximum(score, 1e-30)) / math.log(2.0)
        bins = tf.cast(tf.clip_by_value(octave * _BINS_PER_OCTAVE + _BINS / 2, 0.0, _BINS - 1.0), tf.int32)
        stands_for = tf.fill([-(-size // stride)], size / -(-size // stride))
        counted = self._flips(before, after) & (promise <= largest)
        return counted, bins, tf.stack([promise * stands_for, stands_for], axis=1)

    def moved(
        self,
        before: tf.Tensor,
        gradient: tf.Tensor,
        mean: tf.Tensor,
        square: tf.Tensor,
        kernel: tf.Tensor,
        rates: tf.Tensor,
        lowest: tf.Tensor,
        largest: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        after, mean, square = self._adam(before, gradient, mean, square, rates)
        promise = self._promise(mean, rates) * promise_factor(kernel, self.gradient_scaling)
        may_flip = (promise >= lowest * tf.square(tf.cast(kernel, tf.float32))) & (promise <= largest)
        return tf.where(self._flips(before, after) & ~may_flip, before, after), mean, square

    def _adam(
        self, value: tf.Tensor, gradient: tf.Tensor, mean: tf.Tensor, square: tf.Tensor, rates: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns what `keras.optimizers.Adam` makes of a variable and its moments."""
        rate, count = rates[0], rates[1]
        mean += (gradient - mean) * (1 - self.beta_1)
        square += (tf.square(gradient) - square) * (1 - self.beta_2)
        rate *= tf.sqrt(1 - tf.pow(self.beta_2, count)) / (1 - tf.pow(self.beta_1, count))
        return value - mean * rate / (tf.sqrt(square) + self.epsilon), mean, square

    def _promise(self, mean: tf.Tensor, rates: tf.Tensor) -> tf.Tensor:
        """Returns `|dE/dm|` by the average of the gradients."""
        return tf.abs(mean) / (1 - tf.pow(self.beta_1, rates[1]))

    def _flips(self, before: tf.Tensor, after: tf.Tensor) -> tf.Tensor:
        mask = ternarise if self.kind == "ternary" else binarise
        return mask(before, self.threshold) != mask(after, self.threshold)


@functools.cache
def _compiled(arithmetic: _Arithmetic, name: str, shapes: tuple[tuple[int, ...], ...]) -> Any:
    """Returns a method of `_Arithmetic` as one kernel of XLA, which reads and writes every value once.

    To make one takes longer than many steps. So it is made once for all trainings with such kernels, and not by
    an optimiser for itself.

    Args:
        arithmetic: Whose method it is.
        name: The name of the method.
        shapes: Those of the masks: a function for each, since TensorFlow warns of one that is compiled for many.
    """
    return tf.function(getattr(arithmetic, name), jit_compile=True)


class TrustRegionAdam(keras.optimizers.Adam):
    """Adam that lets masks flip within a trust region; see docs/architecture.md, "Why the masks do not collapse".

    A step without flips is that of `keras.optimizers.Adam`, up to rounding. The loss comes by `watch_loss` before each
    step.

    Args:
        learning_rate: A rate or a schedule.
        kernels: The frozen weights `W` of each variable, in the order of the variables.
        trust: Part of the loss that the flips of one step may promise.
        max_flips: Part of all masked weights that may flip in one step; a number or a schedule.
        threshold: Threshold of the masks.
        kind: `"binary"` or `"ternary"`.
        gradient_scaling: That of the masks, by which their gradients differ from `dE/dm`.
        **kwargs: As for `keras.optimizers.Adam`; without AMSGrad.

    Raises:
        ValueError: With AMSGrad, whose steps are others.
    """

    def __init__(
        self,
        learning_rate: Any,
        kernels: Sequence[keras.Variable],
        *,
        trust: float,
        max_flips: Any,
        threshold: float,
        kind: str = "binary",
        gradient_scaling: str = "none",
        **kwargs: Any,
    ):
        super().__init__(learning_rate, **kwargs)
        if self.amsgrad:
            raise ValueError("TrustRegionAdam foresees the step of plain Adam; AMSGrad is not supported.")
        # A function, since Keras takes the variables in an attribute for the optimiser's own, whose state is saved.
        self._kernel = tuple(kernels).__getitem__
        self.trust = trust
        self.max_flips = max_flips
        self.threshold = threshold
        self.kind = kind
        self.gradient_scaling = gradient_scaling
        self._arithmetic = _Arithmetic(self.beta_1, self.beta_2, self.epsilon, threshold, kind, gradient_scaling)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        # Every replica assigns the same value.
        scalar = {"shape": (), "aggregation": "only_first_replica"}
        self.average_loss = self.add_variable(**scalar, name="average_loss")
        self.long_average_loss = self.add_variable(**scalar, name="long_average_loss")
        self.loss_variance = self.add_variable(**scalar, name="loss_variance")
        self.lowest_loss = self.add_variable(**scalar, name="lowest_loss")
        self.confidence = self.add_variable(**scalar, initializer="ones", name="confidence")
        self._size = sum(math.prod(variable.shape) for variable in variables)

    def watch_loss(self, loss: tf.Tensor) -> None:
        """Takes the loss of a step, in replica context and before the gradients are applied.

        Args:
            loss: Scalar; of several replicas each gives its part of the sum.
        """
        loss = tf.cast(tf.stop_gradient(loss), tf.float32)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            loss = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, loss)

        def averaged(before: keras.Variable, momentum: float) -> tf.Tensor:
            return tf.where(self.iterations == 0, loss, momentum * before.value + (1.0 - momentum) * loss)

        # Before the averages know of it: one bad step is a large deviation.
        deviation = tf.where(self.iterations == 0, 0.0, loss - self.long_average_loss.value)
        variance = _LONG * self.loss_variance.value + (1.0 - _LONG) * tf.square(deviation)
        short, long = averaged(self.average_loss, _SHORT), averaged(self.long_average_loss, _LONG)
        self.average_loss.assign(short)
        self.long_average_loss.assign(long)
        self.loss_variance.assign(variance)
        lowest = tf.where(self.iterations == 0, loss, tf.minimum(self.lowest_loss.value, long))
        self.lowest_loss.assign(lowest)
        confidence = self.confidence.value
        too_high = short - lowest > _MARGIN * tf.sqrt(variance)
        changed = tf.where(too_high, _LESS * confidence, _MORE * confidence)
        self.confidence.assign(tf.clip_by_value(changed, _LEAST, 1.0))

    def _distributed_tf_update_step(self, distribution: Any, grads_and_vars: Any, learning_rate: Any) -> None:
        # Keras updates one variable after another. Here samples of all come first, since which weights of a layer may
        # flip depends on those of all layers.
        pairs = list(grads_and_vars)
        limit, flips = self._limits()
        # Of several replicas each has computed the same rate.
        rate = distribution.experimental_local_results(learning_rate)[0]
        rates = tf.stack([tf.cast(rate, tf.float32), tf.cast(self.iterations + 1, tf.float32)])
        layers = [(variable, gradient, *self._state(variable)) for gradient, variable in pairs]
        largest = limit * _LARGEST_SHARE
        lowest = distribution.extended.update(
            # The first variable stands for the replica that has them all.
            pairs[0][1],
            self._lowest_score,
            args=(layers, rates, largest, limit, flips),
            group=False,
        )[0]
        for gradient, variable in pairs:
            distribution.extended.update(variable, self._move, args=(gradient, rates, lowest, largest), group=False)

    def _state(self, variable: tf.Variable) -> tuple[Any, Any, Any]:
        """Returns both moments and the frozen weights of a variable."""
        index = self._get_variable_index(variable)
        return self._momentums[index].value, self._velocities[index].value, self._kernel(index).value

    def _limits(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what the flips of this step may promise together, and how many they may be."""
        max_flips = self.max_flips(self.iterations) if callable(self.max_flips) else self.max_flips
        confidence = self.confidence.value
        promised = confidence * self.trust * self.average_loss.value
        return promised, confidence * tf.cast(max_flips, tf.float32) * float(self._size)

    def _lowest_score(
        self,
        _: tf.Variable,
        layers: Sequence[Sequence[Any]],
        rates: tf.Tensor,
        largest: tf.Tensor,
        limit: tf.Tensor,
        flips: tf.Tensor,
    ) -> tf.Tensor:
        """Returns the score from which on weights may flip so that both limits are kept.

        Args:
            layers: For each layer mask, gradient, both moments and frozen weights.
            rates: The rate and the number of the step, from 1.
            largest: Weights that promise more do not flip.
            limit: What all may promise together.
            flips: How many they may be.
        """
        tensors = [tuple(map(tf.convert_to_tensor, layer)) for layer in layers]
        # One kernel for all layers: each operation of its own would cost more than what it computes.
        sampled = _compiled(self._arithmetic, "sampled", tuple(tuple(layer[0].shape) for layer in tensors))
        counted, bins, weights = sampled(tensors, rates, largest)
        # Few of the weights flip in a step.
        flipping = tf.where(counted)[:, 0]
        bins, weights = tf.gather(bins, flipping), tf.gather(weights, flipping)
        histogram = tf.math.unsorted_segment_sum(weights, bins, _BINS)
        limits = tf.stack([limit, flips])
        above = tf.cumsum(histogram, reverse=True)
        whole = tf.reduce_all(above <= limits, axis=1)
        bins = _BINS - tf.reduce_sum(tf.cast(whole, tf.int32))
        # Of the first bin that is too full its upper part flips, as if its weights were spread evenly.
        split = tf.maximum(bins - 1, 0)
        part = tf.reduce_min(tf.math.divide_no_nan(limits - (above - histogram)[split], histogram[split]))
        octaves = (tf.cast(bins, tf.float32) - tf.clip_by_value(part, 0.0, 1.0) - _BINS / 2) / _BINS_PER_OCTAVE
        # No more than all may flip: then there is no lowest score.
        return tf.where(bins == 0, 0.0, tf.pow(2.0, octaves))

    def _move(
        self, variable: tf.Variable, gradient: tf.Tensor, rates: tf.Tensor, lowest: tf.Tensor, largest: tf.Tensor
    ) -> None:
        """Takes Adam's step with every weight but those that would flip and may not, which stay where they are."""
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        arguments = (variable, tf.cast(gradient, tf.float32), *self._state(variable))
        moved = _compiled(self._arithmetic, "moved", (tuple(variable.shape),))
        after, new_mean, new_square = moved(*map(tf.convert_to_tensor, arguments), rates, lowest, largest)
        self.assign(variable, after)
        self.assign(mean, new_mean)
        self.assign(square, new_square)

    def get_config(self) -> dict[str, Any]:
        # The kernels are the model's. Who makes the optimiser anew has them.
        max_flips = self.max_flips
        if callable(max_flips):
            max_flips = keras.optimizers.schedules.serialize(max_flips)
        settings = {name: getattr(self, name) for name in ("trust", "threshold", "kind", "gradient_scaling")}
        return {**super().get_config(), **settings, "max_flips": max_flips}


@keras.saving.register_keras_serializable(package="piggyback_tf")
class WatchedOptimizers(keras.optimizers.MultiOptimizer):
    """A `MultiOptimizer` that tells the loss of each step to those of its optimisers that want to know it.

    It knows variables and frozen weights of one model, so that a saved model is loaded without it.

    Args:
        optimizer_map: As for `MultiOptimizer`, a function.
        sent_as: The type in which gradients go from device to device, by the name of the optimiser that they are for.
            Those of any other optimiser go as they are.

    Raises:
        ValueError: By `apply`, if there are such optimisers and `scale_loss` was never called: nothing would flip.
    """

    _was_told = False

    def __init__(
        self,
        optimizer_map: Callable[[keras.Variable], keras.optimizers.Optimizer],
        sent_as: Mapping[str, str] = MappingProxyType({}),
    ):
        super().__init__(optimizer_map)
        self._sent_as = dict(sent_as)

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "WatchedOptimizers":
        raise ValueError(
            "The optimiser of this model knows the weights of the model it was made for, and is not loaded with "
            "another. Load it with keras.models.load_model(path, compile=False). To train on, compile it with "
            "make_optimizer; see docs/own-loops.md."
        )

    def apply(self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[keras.Variable] | None = None) -> None:
        if not self._was_told and any(isinstance(optimizer, TrustRegionAdam) for optimizer in self.optimizers):
            raise ValueError(
                "The masks' optimiser does not know the loss, and without it no weight is ever dropped. In a training "
                "loop of your own take the gradients of optimizer.scale_loss(loss), in every step; see "
                "docs/own-loops.md."
            )
        if self._sent_as:
            # Before the optimisers add up what each device has: what they do afterwards saves no byte.
            variables = self._trainable_variables if trainable_variables is None else trainable_variables
            kinds = [self._sent_as.get(self._optimizer_map(variable).name) for variable in variables]
            grads = [tf.cast(grad, kind) if kind else grad for grad, kind in zip(grads, kinds, strict=True)]
        super().apply(grads, trainable_variables)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        self._was_told = True
        # Keras calls this in every training step, and only there.
        for optimizer in self.optimizers:
            if isinstance(optimizer, TrustRegionAdam):
                optimizer.watch_loss(loss)
        return super().scale_loss(loss)


class WatchedLossScale(keras.optimizers.LossScaleOptimizer):
    """The loss scaling of float16, around `WatchedOptimizers`."""

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        self.inner_optimizer.scale_loss(loss)
        return super().scale_loss(loss)
