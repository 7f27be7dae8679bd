"""Learning rates: over the steps of a training, and how high those of masks are for its number of steps."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.masking import MaskConfig

# Half of a short training leaves masks too few steps at the full rate.
_LONGEST_WARMUP = 3 / 8
# A weight whose gradient keeps its direction comes to the threshold so many times in a training whose rate falls by a
# cosine: half of this, as the mean of a cosine is.
_CROSSINGS = 32
# Of a head on so many features.
HEAD_RATE, _HEAD_FEATURES = 1e-3, 1280
# With fewer the rate is as with these, the fewest that were tried.
_FEWEST_FEATURES = 32


def warmup_length(steps: int, total_steps: int) -> int:
    """Returns the steps of a warm-up: as many as are asked for, at most three eighths of the training's.

    Args:
        steps: How many are asked for; below 0, a tenth of the training's.
        total_steps: Steps of the training.
    """
    return total_steps // 10 if steps < 0 else min(steps, int(_LONGEST_WARMUP * total_steps))


def mask_rate(masks: MaskConfig, total_steps: int) -> float:
    """Returns the masks' learning rate of a training of some steps, where none is given.

    Adam moves a `mask_real` whose gradient keeps its direction by the rate. A rate that is the same for every training
    lets nothing reach the threshold in a short one, and everything in a long one, noise included.
    """
    return _CROSSINGS * masks.distance / total_steps


def head_rate(shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Returns Adam's learning rate of a head, where none is given.

    A step of Adam moves each weight by about the rate, and so a logit by the rate times the sum of its features. With
    few features the same rate teaches a head little. So the rate is in inverse proportion to their number, as for the
    last layer of a network in the maximal update parametrisation (Yang et al., Tensor Programs V, 2022). It is never
    less than that for 1,280 features, the number of MobileNetV2, with which it was found, nor more than for 32.

    Args:
        shapes: Shapes of the head's variables by their paths. Kernels `(..., features, outputs)` with a bias beside
            them give logits, since batch norm follows a head's other layers. The largest of them counts, as in FCN-8s.
    """
    logits = [
        math.prod(shape[:-1])
        for path, shape in shapes.items()
        if len(shape) > 1 and f"{path.rpartition('/')[0]}/bias" in shapes
    ]
    features = max(logits, default=_HEAD_FEATURES)
    return HEAD_RATE * max(1.0, _HEAD_FEATURES / max(features, _FEWEST_FEATURES))


@keras.saving.register_keras_serializable(package="piggyback_tf")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A linear warm-up followed by a cosine, a step or a constant schedule.

    At step `s`, counted from 0, the rate is `peak * min(1, (s + 1) / warmup_steps) * f(s)` with `f(s)` =
    `(1 + cos(pi s / total_steps)) / 2` (cosine), `step_decay ** floor(s / step_length)` (step; section 4 of the
    Piggyback paper decays by 0.1 after half of the epochs), or 1 (constant). Before `first_step` it is 0.

    Args:
        peak: The rate that `f` scales.
        kind: `"cosine"`, `"step"` or `"constant"`.
        total_steps: Steps of the whole training.
        warmup_steps: Steps of the warm-up; 0 for none.
        step_length: Steps between two decays, for `"step"`.
        step_decay: Factor of a decay, for `"step"`.
        first_step: The first step with a rate above 0.
    """

    def __init__(
        self,
        peak: float,
        kind: str,
        total_steps: int,
        warmup_steps: int = 0,
        step_length: int = 1,
        step_decay: float = 0.1,
        first_step: int = 0,
    ):
        super().__init__()
        self.peak = peak
        self.kind = kind
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.step_length = step_length
        self.step_decay = step_decay
        self.first_step = first_step

    def __call__(self, step: Any) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        if self.kind == "cosine":
            factor = 0.5 * (1.0 + tf.cos(math.pi * tf.minimum(step / self.total_steps, 1.0)))
        elif self.kind == "step":
            factor = tf.pow(self.step_decay, tf.floor(step / self.step_length))
        else:
            factor = tf.constant(1.0)
        if self.warmup_steps:
            factor *= tf.minimum(1.0, (step + 1.0) / self.warmup_steps)
        if self.first_step:
            factor *= tf.cast(step >= self.first_step, tf.float32)
        return self.peak * factor

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "kind": self.kind,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "step_length": self.step_length,
            "step_decay": self.step_decay,
            "first_step": self.first_step,
        }
