"""Residual adapters: small 1x1 convolutions beside frozen 3x3 ones, for each task.

In series (Rebuffi, Bilen and Vedaldi, NIPS 2017, arXiv 1705.08045): what a convolution returns, `y`, becomes
`y + A * BN(y)`, with a 1x1 convolution A and batch norm of the adapter's own. In parallel (the same authors, CVPR 2018,
arXiv 1803.10082): the convolution `F * x` becomes `F * x + A * x`, with the stride of F. That is the convolution with A
added to the centre of F, which is how it is computed here: it costs nothing when the task is used, and fits whatever
stride, padding and dilation F has. Both come before the activation.

A starts at 0, so that the network starts as the base. Adapters, batch norm of the whole network and the head belong to
the task; all else is the base's. Adapters stand at full 3x3 convolutions only: neither at 1x1 nor at depthwise nor at
grouped ones, so that MobileNetV2 has one at its first convolution alone, and a network without any is refused.

The papers let the statistics of batch norm follow the task (`norm_statistics="task"`), as those of an adapter in series
always do. They train for 120 epochs with batches of 128, SGD at 0.1 with momentum 0.9, divided by 10 after 80 and 100
epochs, and weight decay; here the rate is 0.025, in proportion to batches of 32, and falls along a cosine, and there is
no weight decay.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_batch_norm, named_layers
from piggyback_tf.methods.base import METHODS, Method, trained_norm
from piggyback_tf.settings.methods.residual_adapters import ResidualAdaptersConfig
from piggyback_tf.surgery import FrozenKernels, copy_layers, derived_layers, share_variables

_NOT_IN_SEQUENTIAL = (
    "Adapters in series are put between layers, which a nested Sequential model with 3x3 convolutions does not allow; "
    "use adapter_kind='parallel', or a functional model."
)


class AdaptedKernel(FrozenKernels):
    """Computes with a frozen kernel to whose centre a trained adapter `[input channels, output channels]` is added."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self._adapter = self.add_learned_weight("adapter", self._kernel.shape[2:])

    def derive(self, weight: str, kernel: tf.Tensor) -> tf.Tensor:
        """Returns the frozen kernel plus the adapter at its centre."""
        adapter = getattr(self, "_adapter", None)
        if adapter is None:  # Keras' `build` may look at the kernel before the adapter is there.
            return kernel
        padding = [[side // 2] * 2 for side in kernel.shape[:2]] + [[0, 0]] * 2
        adapter = tf.cast(tf.convert_to_tensor(adapter.value), kernel.dtype)
        return kernel + tf.pad(adapter[None, None], padding)


ADAPTED_LAYERS = derived_layers(AdaptedKernel, "Adapted", [keras.layers.Conv2D])


@METHODS.register("residual_adapters")
class ResidualAdapters(Method):
    """Learns adapters at the 3x3 convolutions of the frozen backbone, batch norm, and the head."""

    Config = ResidualAdaptersConfig
    config: ResidualAdaptersConfig
    makes_pack = False

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        del seed  # Nothing here starts at random.
        chosen = {id(layer) for _, layer in named_layers(backbone.model) if is_full_3x3(layer)}
        if not chosen:
            raise ValueError(
                f"Backbone {backbone.name!r} has no full 3x3 convolution for residual adapters to stand at; use "
                "another backbone, or another method, such as piggyback."
            )
        parallel, norm = self.config.adapter_kind == "parallel", trained_norm(self.config)

        def settings_of(layer: keras.Layer) -> tuple[type[keras.Layer], dict]:
            if parallel and id(layer) in chosen:
                return ADAPTED_LAYERS[type(layer)], {"trainable": True}
            if is_batch_norm(layer):
                return norm.settings_of(layer)
            return type(layer), {"trainable": False}

        insertion = None if parallel else SeriesInsertion(norm.momentum)
        model, copies = copy_layers(backbone.model, settings_of, insertion)
        if insertion and len(insertion.adapters) < len(chosen):
            raise ValueError(_NOT_IN_SEQUENTIAL)
        for copy, layer in copies:
            share_variables(copy, layer, own=norm.trained_weights if is_batch_norm(layer) else ())
        return model

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        group = super().variable_group(path, layer)
        return "adapter" if group == "weights" else group


class SeriesInsertion:
    """Calls the layers of a network and puts an adapter behind each full 3x3 convolution, before its activation.

    Args:
        norm_momentum: Momentum of the adapters' batch norm.

    Attributes:
        adapters: What is applied behind a convolution, by the id of this.
    """

    def __init__(self, norm_momentum: float):
        self._momentum = norm_momentum
        self.adapters: dict[int, Callable[[keras.KerasTensor], keras.KerasTensor]] = {}

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_full_3x3(layer):
            return layer(*args, **kwargs)
        if id(layer) not in self.adapters:  # A layer that occurs twice in the network has one adapter.
            self.adapters[id(layer)] = self._adapter(layer)
        return self.adapters[id(layer)](layer(*args, **kwargs))

    def _adapter(self, conv: keras.layers.Conv2D) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
        """Returns `activation(y + A * BN(y))` as a function of `y`, and takes the activation from the convolution."""
        name, layers = f"{conv.name}_adapter", keras.layers
        norm = layers.BatchNormalization(
            axis=-1 if conv.data_format == "channels_last" else 1, momentum=self._momentum, name=f"{name}_norm"
        )
        mix = layers.Conv2D(
            conv.filters,
            1,
            use_bias=False,
            kernel_initializer="zeros",
            data_format=conv.data_format,
            name=name,
        )
        add = layers.Add(name=f"{name}_add")
        after = layers.Activation(conv.activation, name=f"{name}_activation")
        conv.activation = keras.activations.linear
        if after.activation is keras.activations.linear:
            return lambda y: add([y, mix(norm(y))])
        return lambda y: after(add([y, mix(norm(y))]))


def is_full_3x3(layer: Any) -> bool:
    """Whether a layer is a 3x3 convolution from all channels to all channels."""
    return type(layer) is keras.layers.Conv2D and layer.kernel_size == (3, 3) and layer.groups == 1
