"""Piggyback: one mask over the frozen weights per task (Mallya, Davis, Lazebnik, ECCV 2018, section 3).

Beyond the paper, masks can start as those of another task (`init_from`), and weights can have a price for being dropped
(`sparsity_weight`): with D of the N masked weights not used as they are, the loss has the term

    sparsity_weight * D / N

whose gradient passes the threshold like that of the loss itself. A weight is then only dropped for good if that lowers
the loss by more than `sparsity_weight / N`, as far as its gradient tells.
"""

import math
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import MaskStart, mask, masked_weights, start_masks
from piggyback_tf.masking.threshold import count_dropped
from piggyback_tf.methods.base import METHODS, Method
from piggyback_tf.methods.memory import Memory
from piggyback_tf.methods.penalty import PenalisedModel
from piggyback_tf.settings.methods.piggyback import PiggybackConfig

AUTO = "auto"  # Of `init_from`: the best of the tasks learned before; followed by `:`, the best of some packs.


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

    def build(self, backbone: Backbone, num_classes: int, seed: int = 0) -> keras.Model:
        model = super().build(backbone, num_classes, seed)
        if not self.config.sparsity_weight:
            return model
        penalty = self._price(model)
        return PenalisedModel(inputs=model.input, outputs=model.output, name=model.name, penalty=penalty)

    def features(self, backbone: Backbone, seed: int) -> keras.Model:
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

    def _price(self, model: keras.Model) -> Callable[[], tf.Tensor]:
        """Returns what computes `sparsity_weight * D / N`."""
        masks = [weight.mask_real for weight in masked_weights(model).values()]
        price = self.config.sparsity_weight / sum(math.prod(mask_real.shape) for mask_real in masks)
        limits = self.config.mask_threshold, self.config.mask_scale

        def penalty() -> tf.Tensor:
            return price * tf.add_n([count_dropped(tf.convert_to_tensor(v.value), *limits) for v in masks])

        return penalty


def split_patterns(text: str) -> list[str]:
    """Returns the patterns of a comma-separated list, without blanks and empty entries."""
    return [pattern.strip() for pattern in text.split(",") if pattern.strip()]
