"""Which weights of a base tasks can change: kernels, and batch norm."""

import dataclasses

import keras

from piggyback_tf.backbones import Backbone, batch_norm_paths, named_layers, named_variables
from piggyback_tf.masking import MASKED_LAYERS, maskable_weights
from piggyback_tf.surgery import check_kernel


@dataclasses.dataclass(frozen=True, eq=False)
class TaskWeights:
    """What tasks can change in a base, in the order of its layers.

    Attributes:
        kernels: By the canonical path of a kernel that can be masked, its layer.
        norms: By the canonical path of a batch norm layer, the layer.
    """

    kernels: dict[str, keras.Layer]
    norms: dict[str, keras.layers.BatchNormalization]

    @classmethod
    def of(cls, backbone: Backbone) -> "TaskWeights":
        """Returns what tasks can change in a base; see `in_model`."""
        return cls.in_model(backbone.model, backbone.name)

    @classmethod
    def in_model(cls, model: keras.Model, name: str) -> "TaskWeights":
        """Returns what tasks can change in a network, of which a head is one, too.

        Args:
            model: The network.
            name: Stands for it in errors.

        Raises:
            ValueError: If a kernel or a variable of batch norm is not float32, or a layer computes with more than its
                kernel.
        """
        layers = dict(named_layers(model))
        for layer in layers.values():
            if type(layer) in MASKED_LAYERS:
                check_kernel(layer)
        kernels, norm_paths = maskable_weights(model), batch_norm_paths(model)
        norms = {path: layer for path, layer in layers.items() if path in norm_paths}
        for path, variable in named_variables(model).items():
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if dtype != "float32" and (path in kernels or path.rpartition("/")[0] in norms):
                raise ValueError(
                    f"Weight {path!r} of {name!r} is {dtype}; a base is exported if its kernels and batch "
                    "norm are float32."
                )
        return cls(kernels, norms)
