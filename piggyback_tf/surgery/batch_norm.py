"""Batch norm that a task trains: gamma and beta, with the statistics of the base or with its own.

Keras' layer, while it is trained, normalises with the mean and variance of the batch, and lets its moving statistics
follow them. Small batches of small images (144 numbers a channel in the last layers of MobileNetV2, with 16 images of
96 pixels) make them so noisy that training suffers; see docs/results.md. Keras' own guide to fine-tuning leaves the
layer in inference mode, which with `trainable=False` stops gamma and beta, too. Here these can be trained alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from piggyback_tf.backbones.paths import batch_norm_paths
from piggyback_tf.settings.methods.base import check_trained_norm
from piggyback_tf.surgery.kernels import PACKAGE


@keras.saving.register_keras_serializable(package=PACKAGE)
class FrozenStatisticsBatchNormalization(keras.layers.BatchNormalization):
    """Batch norm in inference mode, trained or not."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        del training
        return super().call(inputs, training=False, mask=mask)


@keras.saving.register_keras_serializable(package=PACKAGE)
class PartlyTrainedBatchNormalization(FrozenStatisticsBatchNormalization):
    """Batch norm in inference mode, some of whose weights are trained; only these can be otherwise than in the base.

    Args:
        trained: Names of the weights, such as `("beta",)`.
        **kwargs: As for `keras.layers.BatchNormalization`.
    """

    def __init__(self, trained: Sequence[str] = ("gamma", "beta"), **kwargs: Any):
        super().__init__(**kwargs)
        self.trained_weights = tuple(trained)

    def add_weight(self, *args: Any, name: str | None = None, trainable: bool = True, **kwargs: Any) -> keras.Variable:
        trainable = trainable and name in self.trained_weights
        return super().add_weight(*args, name=name, trainable=trainable, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "trained": list(self.trained_weights)}


@dataclasses.dataclass(frozen=True)
class TrainedNorm:
    """How batch norm is trained.

    Args:
        statistics: `"frozen"`: mean and variance stay those that the layer starts with, and only gamma and beta are
            trained. `"task"`: those of each batch, which the moving statistics follow.
        momentum: Momentum of the moving statistics, if they move.
        only: With frozen statistics, the names of the weights that are trained, where a task is to hold these and no
            others; None for gamma and beta, of which a task holds the whole layer.

    Raises:
        ValueError: If a value is not valid.
    """

    statistics: str = "frozen"
    momentum: float = 0.9
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_trained_norm(self.statistics, self.momentum)

    def settings_of(self, layer: keras.layers.BatchNormalization) -> tuple[type[keras.Layer], dict[str, Any]]:
        """Returns the class of a layer's copy that is trained so, and what is changed in its config.

        Raises:
            ValueError: If the layer is of a kind that has only statistics of its own.
        """
        if self.statistics == "task":
            return type(layer), {"momentum": self.momentum, "trainable": True}
        if type(layer) not in _KNOWN:
            # Its call may do anything in training, so that nothing made of it would be known to compute what it does.
            raise ValueError(
                f"norm_statistics='frozen' can train Keras' own BatchNormalization; layer {layer.name!r} is of class "
                f"{type(layer).__name__}. Use norm_statistics='task', or do not train batch norm."
            )
        if self.only is not None:
            return PartlyTrainedBatchNormalization, {"trainable": True, "trained": list(self.only)}
        return FrozenStatisticsBatchNormalization, {"trainable": True}

    @property
    def trained_weights(self) -> tuple[str, ...]:
        """The names of the weights that training changes, in any layer of batch norm; a layer may lack some."""
        if self.only is not None and self.statistics == "frozen":
            return self.only
        statistics = ("moving_mean", "moving_variance", "moving_stddev", "renorm_mean", "renorm_stddev")
        return ("gamma", "beta") + (statistics if self.statistics == "task" else ())


_KNOWN = (keras.layers.BatchNormalization, FrozenStatisticsBatchNormalization, PartlyTrainedBatchNormalization)


def check_has_batch_norm(model: keras.Model, otherwise: str = "use norm='frozen'") -> None:
    """Raises a `ValueError` if a network has no batch norm that a task could train.

    Args:
        model: The network.
        otherwise: What to do then, to end the sentence with.
    """
    if not batch_norm_paths(model):
        raise ValueError(f"Network {model.name!r} has no batch normalisation to train; {otherwise}.")
