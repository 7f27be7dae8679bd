"""Networks made of other networks: copies with other layers, kernels that are derived, variables that are shared."""

from piggyback_tf.surgery.batch_norm import (
    FrozenStatisticsBatchNormalization,
    PartlyTrainedBatchNormalization,
    TrainedNorm,
    check_has_batch_norm,
)
from piggyback_tf.surgery.copying import bake_kernels, copy_layers, copy_of_base
from piggyback_tf.surgery.forward import features_with
from piggyback_tf.surgery.image_shape import for_image_shape
from piggyback_tf.surgery.kernels import (
    KERNELS,
    PACKAGE,
    DerivedKernels,
    FrozenKernels,
    OwnBias,
    check_kernel,
    derived_kernel,
    derived_layers,
    foreign_kernels,
    generator,
)
from piggyback_tf.surgery.sharing import BaseVariable, share_variables
from piggyback_tf.surgery.variables import all_arrays, assign_arrays, own_arrays

__all__ = [
    "KERNELS",
    "PACKAGE",
    "BaseVariable",
    "DerivedKernels",
    "FrozenKernels",
    "FrozenStatisticsBatchNormalization",
    "OwnBias",
    "PartlyTrainedBatchNormalization",
    "TrainedNorm",
    "all_arrays",
    "assign_arrays",
    "bake_kernels",
    "check_has_batch_norm",
    "check_kernel",
    "copy_layers",
    "copy_of_base",
    "derived_kernel",
    "derived_layers",
    "for_image_shape",
    "features_with",
    "foreign_kernels",
    "generator",
    "own_arrays",
    "share_variables",
]
