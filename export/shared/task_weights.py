"""Which weights of a base tasks can change: kernels, and batch norm."""

import dataclasses

import keras

from piggyback_tf.backbones import Backbone, named_layers, named_variables
from piggyback_tf.backbones.paths import is_batch_norm
from piggyback_tf.masking.layers import MASKED_LAYERS
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
        variables, kernels, norms = named_variables(backbone.model), {}, {}
        for path, layer in named_layers(backbone.model):
            if type(layer) in MASKED_LAYERS:
                check_kernel(layer)
                names = (f"{path}/{name}" for name in MASKED_LAYERS[type(layer)].MASKED_WEIGHTS)
                kernels |= {kernel: layer for kernel in names if kernel in variables}
            elif is_batch_norm(layer) and f"{path}/moving_mean" in variables:
                norms[path] = layer
        for path, variable in variables.items():
            dtype = keras.backend.standardize_dtype(variable.dtype)
            if dtype != "float32" and (path in kernels or path.rpartition("/")[0] in norms):
                raise ValueError(
                    f"Weight {path!r} of {backbone.name!r} is {dtype}; a base is exported if its kernels and batch "
                    "norm are float32."
                )
        return cls(kernels, norms)
