"""Masks that start as another task's masks, instead of as their config says."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from absl import logging

from piggyback_tf.foreign_text import some
from piggyback_tf.masking.wrap import masked_weights
from piggyback_tf.settings.masks import MaskConfig


@dataclasses.dataclass(frozen=True, eq=False)
class MaskStart:
    """Where the masks of a task start.

    Attributes:
        task: The task that they are of; empty if there is none.
        kind: The kind of its masks, `"binary"` or `"ternary"`.
        masks: The masks to start from by the weight's canonical path, int8 of the kernel's shape, values {-1, 0, 1}.
            Masks that are not named start as their config says; so all of them do if this is empty.
        norm: The variables of batch norm to start from, float32, by canonical path.
        origin: What they were taken from, as JSON values, for the record.
    """

    task: str = ""
    kind: str = "binary"
    masks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    norm: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def start_masks(model: keras.Model, masks: Mapping[str, np.ndarray]) -> None:
    """Sets `mask_real` of a masked model so that its masks are the given ones; see `start_value`.

    Args:
        model: A masked model.
        masks: Masks by the weight's canonical path. The model's masks that are not named stay as they are; what is
            named and has no mask in the model is left out, with a warning.

    Raises:
        ValueError: If a mask cannot be expressed with the settings of the model's masks.
    """
    weights = masked_weights(model)
    if left_out := [path for path in masks if path not in weights and not (masks[path] == 1).all()]:
        logging.warning("Not masked here, and so not as in the pack that masks start from: %s.", some(left_out))
    for path, weight in weights.items():
        if path in masks:
            weight.mask_real.assign(start_value(masks[path], weight.layer.mask_config))


def start_value(mask: np.ndarray, config: MaskConfig) -> np.ndarray:
    """Returns a real-valued mask that is as far from the threshold where its mask is 0 as where it is 1.

    `scale` where the mask is 1 and `-scale` where it is -1. Where it is 0, `2 threshold - scale` for binary masks, so
    that a weight comes back as easily as one is dropped, and 0 for ternary ones, which is as far from both signs.

    Args:
        mask: Values {0, 1}, or {-1, 0, 1} for ternary masks.
        config: Kind, threshold and scale.

    Returns:
        A float32 array of the same shape.

    Raises:
        ValueError: If the scale is not above the threshold, or a binary mask is to start from -1.
    """
    zero = 0.0 if config.kind == "ternary" else 2.0 * config.threshold - config.scale
    if not np.float32(zero) < np.float32(config.threshold) < np.float32(config.scale):
        raise ValueError(
            "Masks that start from other masks need a scale above the threshold. Received: "
            f"scale={config.scale}, threshold={config.threshold}."
        )
    if config.kind == "binary" and (mask < 0).any():
        raise ValueError("Binary masks cannot start from a ternary mask that turns signs over; use kind='ternary'.")
    return np.where(mask == 0, zero, mask * config.scale).astype(np.float32)
