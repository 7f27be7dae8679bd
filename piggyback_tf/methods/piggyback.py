"""Piggyback: one mask over the frozen weights per task (Mallya, Davis, Lazebnik, ECCV 2018, section 3).

Beyond the paper, masks can start as those of another task (`init_from`), and weights can have a price for being dropped
(`sparsity_weight`): with D of the N masked weights not used as they are, the loss has the term

    sparsity_weight * D / N

whose gradient passes the threshold like that of the loss itself. A weight is then only dropped for good if that lowers
the loss by more than `sparsity_weight / N`, as far as its gradient tells.

Masks can be affine (`mask_affine`), with four learned numbers for each kernel; see `masking/threshold.py`.
"""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import MaskStart, mask, masked_weights, start_masks
from piggyback_tf.masking.threshold import count_dropped
from piggyback_tf.methods.base import AUTO, METHODS, Method
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.memory import Memory
from piggyback_tf.settings.methods.piggyback import PiggybackConfig


@METHODS.register("piggyback")
class Piggyback(Method):
    """Learns `mask_real` for every kernel of the backbone, and the head; the backbone's weights stay shared.

    Args:
        config: As for `Method`.
        memory: As for `Method`.
        heads: As for `Method`.
        start: What the masks start from, if `config.init_from` says so.
    """

    Config = PiggybackConfig
    config: PiggybackConfig

    def __init__(
        self,
        config: PiggybackConfig | None = None,
        memory: Memory | None = None,
        heads: Mapping[str, int] | None = None,
        start: MaskStart | None = None,
    ):
        super().__init__(config, memory, heads)
        self.start = start
        # What the class says holds for masks that start on their own.
        self.sequential = self.config.init_from == AUTO

    @property
    def watches_features(self) -> bool:  # type: ignore[override]  # Nobody sets it.
        """Masks that start otherwise may drop most of the network at once, as they are told to."""
        return self.config.mask_init == "constant"

    @property
    def start_source(self) -> str:
        return self.config.init_from

    def starting_from(self, start: MaskStart) -> "Piggyback":
        if start.kind == "ternary" and self.config.mask_kind != "ternary":
            raise ValueError(
                f"Task {start.task!r} has ternary masks, from which {self.config.mask_kind} ones cannot start. Use "
                "mask_kind='ternary', or the pack of a task with binary masks."
            )
        if start.norm and self.config.norm != "task":
            raise ValueError(
                f"Task {start.task!r} has batch norm of its own, without which its masks are not what they were, and "
                f"norm={self.config.norm!r} keeps that of the base. Use norm='task', or the pack of a task with the "
                "base's batch norm."
            )
        return type(self)(self.config, self.memory, self.heads, start)

    @property
    def provenance(self) -> dict[str, Any]:
        """Under `"start"`: `"pack"`, None if masks started as usual; `"digest"` of its content; and `"scores"`, if it
        was chosen: the LogME of each pack, the first being that of none."""
        return {} if self.start is None else {"start": dict(self.start.origin)}

    def feature_model(self, backbone: Backbone, seed: int) -> keras.Model:
        config = self.config
        if config.init_from and self.start is None:
            raise ValueError(
                f"Method 'piggyback' has init_from={config.init_from!r} and no start; `sequences.with_start` reads it."
            )
        model = mask(
            backbone.model,
            config.masks(seed),
            include=split_patterns(config.mask_include),
            exclude=split_patterns(config.mask_exclude),
            norm=config.norm,
            norm_statistics=config.norm_statistics,
            norm_momentum=config.norm_momentum,
        )
        if self.start is not None:
            start_masks(model, self.start.masks)
            variables = named_variables(model)
            for path, value in self.start.norm.items():
                variables[path].assign(value)
        return model

    def added_loss(self, model: keras.Model, backbone: Backbone) -> AddedLoss | None:
        """Returns what computes `sparsity_weight * D / N`."""
        del backbone
        if not self.config.sparsity_weight:
            return None
        masks = [weight.mask_real for weight in masked_weights(model).values()]
        price = self.config.sparsity_weight / sum(math.prod(mask_real.shape) for mask_real in masks)
        limits = self.config.mask_threshold, self.config.mask_scale

        def penalty(images: tf.Tensor, answers: tf.Tensor) -> tf.Tensor:
            del images, answers
            return price * tf.add_n([count_dropped(tf.convert_to_tensor(v.value), *limits) for v in masks])

        return penalty


def split_patterns(text: str) -> list[str]:
    """Returns the patterns of a comma-separated list, without blanks and empty entries."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
