"""Masks over frozen weights: thresholding, layers, and networks made of them."""

from piggyback_tf.masking.layers import (
    MASKED_LAYERS,
    MaskedConv2D,
    MaskedConv2DTranspose,
    MaskedDense,
    MaskedDepthwiseConv2D,
    MaskedLayer,
    MaskedSeparableConv2D,
)
from piggyback_tf.masking.start import MaskStart, start_masks
from piggyback_tf.masking.threshold import masked_kernel
from piggyback_tf.masking.wrap import (
    MaskedWeight,
    mask,
    mask_config,
    maskable_weights,
    masked_weights,
    read_masks,
    share,
)
from piggyback_tf.settings.masks import MaskConfig

__all__ = [
    "MASKED_LAYERS",
    "MaskConfig",
    "MaskStart",
    "MaskedConv2D",
    "MaskedConv2DTranspose",
    "MaskedDense",
    "MaskedDepthwiseConv2D",
    "MaskedLayer",
    "MaskedSeparableConv2D",
    "MaskedWeight",
    "mask",
    "mask_config",
    "maskable_weights",
    "masked_kernel",
    "masked_weights",
    "read_masks",
    "share",
    "start_masks",
]
