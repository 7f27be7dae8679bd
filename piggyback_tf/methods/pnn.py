"""Progressive neural networks: a column for each task, which reads the columns of earlier ones (Rusu et al., 2016;
arXiv 1606.04671).

A column is a network of its own. The first task trains one, and each further task one more, whose layers also see what
the frozen columns of the tasks before compute (equation 2 of the paper). Nothing that is learned later changes an
earlier column, nor is it needed for the answers of an earlier task.

Here every column starts as the base. Laterals come in at the stage boundaries: at the inputs of strided layers behind
the first kernel, and at the features. There, where the columns before have `h_1 ... h_(k-1)` and the new one has `h`,
the new one goes on with

    h + relu(V [a_1 h_1, ..., a_(k-1) h_(k-1)])

where `[...]` puts channels side by side, V is a 1x1 convolution to the channels of `h` (at the features a dense layer)
with a bias, and the scalars `a`, which adjust for different scales, are learned from `pnn_scale` on. The matrix U of
the paper, between this and the sum of the next layer, is the kernel of that layer here. Since `a` starts small, so does
what a lateral adds.

A task's own arrays are its column and its laterals; the base is needed to learn further tasks only.
"""

from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, copy_weights, named_layers
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.parts.memory import split_off_head
from piggyback_tf.methods.parts.shared_network import trainable_network
from piggyback_tf.methods.parts.stages import StageInsertion, check_stages
from piggyback_tf.settings.methods.pnn import PNNConfig
from piggyback_tf.surgery import PACKAGE, assign_arrays, copy_layers, generator, share_variables

EARLIER_NAME = "earlier_columns"
LATERAL_NAME = "lateral"


@keras.saving.register_keras_serializable(package=PACKAGE)
class Scale(keras.layers.Layer):
    """Multiplies by a learned scalar. Input and output have the same shape, of any rank.

    Args:
        start: The scalar at the start.
        **kwargs: As for `keras.layers.Layer`.
    """

    def __init__(self, start: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.start = start

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        initializer = keras.initializers.Constant(self.start)
        self.scale = self.add_weight(shape=(), initializer=initializer, dtype="float32", autocast=False, name="scale")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * tf.cast(self.scale.value, inputs.dtype)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "start": self.start}


@keras.saving.register_keras_serializable(package=PACKAGE)
class FrozenColumns(keras.Model):
    """A functional model from images to the stage boundaries of columns, always in inference mode.

    Its outputs are those of the first column in the order of computation, then those of the second, and so on.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        # Dropout of an earlier column would be noise to the new one.
        return super().call(inputs, training=False, mask=mask)


class LateralInsertion(StageInsertion):
    """Calls the layers of a column and puts laterals in front of its strided layers.

    Args:
        earlier: The columns before; None for the first.
        columns: How many these are.
        scale: What the outputs of earlier columns are multiplied by at the start.
        seed: Seed of the laterals.

    Attributes:
        sources: What the columns before compute at their stage boundaries; see `FrozenColumns`.
    """

    def __init__(self, earlier: FrozenColumns | None, columns: int, scale: float, seed: int):
        super().__init__()
        self._earlier = earlier
        self._columns = columns
        self._scale = scale
        self._seed = seed
        self.sources: list[keras.KerasTensor] = []

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if self._earlier is not None and not self.sources:
            # The first operation reads the images.
            self.sources = self._earlier(keras.tree.flatten(args)[0])
        return super().__call__(layer, *args, **kwargs)

    def inserted(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        return tensor if self._earlier is None else self._add_lateral(tensor, number)

    def _add_lateral(self, tensor: keras.KerasTensor, number: int) -> keras.KerasTensor:
        layers, name = keras.layers, f"{LATERAL_NAME}_{number + 1}"
        sources = self.sources[number :: len(self.sources) // self._columns]
        scaled = [
            Scale(self._scale, name=f"{name}_scale_{column}")(source) for column, source in enumerate(sources, start=1)
        ]
        joined = layers.Concatenate(name=f"{name}_concat")(scaled) if len(scaled) > 1 else scaled[0]
        initializer = keras.initializers.GlorotUniform(seed=int(generator(self._seed, name).integers(2**31)))
        settings = {"activation": "relu", "kernel_initializer": initializer, "name": name}
        if len(tensor.shape) == 2:
            mix = layers.Dense(tensor.shape[-1], **settings)
        else:
            mix = layers.Conv2D(tensor.shape[-1], 1, **settings)
        return layers.Add(name=f"{name}_add")([tensor, mix(joined)])


@METHODS.register("pnn")
class PNN(Method):
    """Trains a copy of the backbone for each task, with laterals from those of the tasks before."""

    Config = PNNConfig
    config: PNNConfig
    makes_pack = False
    plain_networks = False
    sequential = True

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        check_stages(backbone.model, "PNN", "laterals")
        earlier = None
        for number, task in enumerate(self.memory.tasks):
            column, laterals = self._column(backbone, earlier, number, seed)
            own = self.memory.of(task)
            assign_arrays(column, split_off_head(own)[1])
            earlier = FrozenColumns(
                inputs=column.input, outputs=[*laterals.sources, *laterals.boundaries], name=EARLIER_NAME
            )
            earlier.trainable = False
            for _, layer in named_layers(earlier):
                share_variables(layer, layer)  # From now on nothing writes these.
        return self._column(backbone, earlier, len(self.memory.tasks), seed)[0]

    def variable_group(self, path: str, layer: keras.Layer) -> str:
        return "adapter" if path.startswith(f"{LATERAL_NAME}_") else super().variable_group(path, layer)

    def _column(
        self, backbone: Backbone, earlier: FrozenColumns | None, number: int, seed: int
    ) -> tuple[keras.Model, LateralInsertion]:
        """Returns a trainable column over so many earlier ones, from images to features, and its laterals."""
        network = trainable_network(backbone, self.config)
        laterals = LateralInsertion(earlier, number, self.config.pnn_scale, seed)
        model, copies = copy_layers(network, lambda layer: (type(layer), {}), laterals)
        for copy, layer in copies:
            copy_weights(layer, copy)
        return keras.Model(model.input, laterals.finish(model.output), name=model.name), laterals
