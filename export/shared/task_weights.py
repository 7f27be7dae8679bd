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
        """Returns what tasks can change.

        Raises:
            ValueError: If a kernel or a variable of batch norm is not float32, or a layer computes with more than its
                kernel.
        """
        layers = dict(named_layers(backbone.model))
        for layer in layers.values():
            if type(layer) in MASKED_LAYERS:
                check_kernel(layer)
        kernels, norm_paths = maskable_weights(backbone.model), batch_norm_paths(backbone.model)
        norms = {path: layer for path, layer in layers.items() if path in norm_paths}
        for path, variable in named_variables(backbone.model).items():
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if dtype != "float32" and (path in kernels or path.rpartition("/")[0] in norms):
                raise ValueError(
                    f"Weight {path!r} of {backbone.name!r} is {dtype}; a base is exported if its kernels and batch "
                    "norm are float32."
                )
        return cls(kernels, norms)
