"""Batch norm that a task trains: gamma and beta, with the statistics of the base or with its own.

Keras' layer, while it is trained, normalises with the mean and variance of the batch, and lets its moving statistics
follow them. Small batches of small images (144 numbers a channel in the last layers of MobileNetV2, with 16 images of
96 pixels) make them so noisy that training suffers; see docs/results.md. Keras' own guide to fine-tuning leaves the
layer in inference mode, which with `trainable=False` stops gamma and beta, too. Here these can be trained alone.
"""

import dataclasses
import functools
from typing import Any

import keras

from piggyback_tf.masking.kernels import PACKAGE

STATISTICS = ("frozen", "task")


class FrozenStatistics:
    """Batch norm in inference mode, trained or not; comes before the Keras layer in the bases of a class."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        del training
        return super().call(inputs, training=False, mask=mask)


@dataclasses.dataclass(frozen=True)
class TrainedNorm:
    """How batch norm is trained.

    Args:
        statistics: `"frozen"`: mean and variance stay those that the layer starts with, and only gamma and beta are
            trained. `"task"`: those of each batch, which the moving statistics follow.
        momentum: Momentum of the moving statistics, if they move.

    Raises:
        ValueError: If a value is not valid.
    """

    statistics: str = "frozen"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.statistics not in STATISTICS:
            raise ValueError(
                f"`norm_statistics` must be one of {', '.join(STATISTICS)}. Received: "
                f"norm_statistics={self.statistics!r}."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"`norm_momentum` must be in [0, 1). Received: norm_momentum={self.momentum}.")

    def settings_of(self, layer: keras.layers.BatchNormalization) -> tuple[type[keras.Layer], dict[str, Any]]:
        """Returns the class of a layer's copy that is trained so, and what is changed in its config."""
        if self.statistics == "task":
            return type(layer), {"momentum": self.momentum, "trainable": True}
        return frozen_statistics(type(layer)), {"trainable": True}

    @property
    def trained_weights(self) -> tuple[str, ...]:
        """The names of the layer's weights that training changes."""
        return ("gamma", "beta") + (("moving_mean", "moving_variance") if self.statistics == "task" else ())


@functools.cache
def frozen_statistics(kind: type[keras.layers.BatchNormalization]) -> type[keras.layers.BatchNormalization]:
    """Returns the class of a kind of batch norm, registered with Keras, whose statistics never change."""
    if issubclass(kind, FrozenStatistics):
        return kind
    members = {"__module__": __name__, "__doc__": f"`{kind.__name__}`. {FrozenStatistics.__doc__}"}
    return keras.saving.register_keras_serializable(package=PACKAGE)(
        type(f"FrozenStatistics{kind.__name__}", (FrozenStatistics, kind), members)
    )


def plain_norm(kind: type[keras.Layer]) -> type[keras.Layer]:
    """Returns the kind of batch norm that `frozen_statistics` made a class of; other classes as they are."""
    return kind.__bases__[1] if issubclass(kind, FrozenStatistics) else kind


frozen_statistics(keras.layers.BatchNormalization)  # So that Keras knows it when it loads a model.
