"""Averaged gradient episodic memory (Chaudhry, Ranzato, Rohrbach and Elhoseiny, Efficient Lifelong Learning with A-GEM,
ICLR 2019; arXiv 1812.00420).

One network learns task after task. No step may raise the mean loss of a batch of kept images of earlier tasks, as far
as its gradient tells (equation 10). With the gradient `g` of the new task's batch and `r` of the kept images, the
weights follow (equation 11)

    g                              if g . r >= 0
    g - (g . r) / (r . r) * r      otherwise

whose product with `r` is 0. Both products are over the weights that the tasks share, those of the network. The paper's
are over all. With a head for each task `g` is 0 for the old heads and `r` for the new one, and over all weights the
result would still raise the loss by the shared ones. Old heads follow the same formula with the same factor.

The kept images, and how they are judged, are those of `parts/replay.py`. The paper trains in one pass, by SGD. The
recipe here is SGD without momentum at one rate, since only then the step has the direction of the gradient: momentum
and Adam take steps of which nothing is promised. The loss that is reported is the sum of both batches' losses.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from piggyback_tf.backbones import named_variables
from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.many_heads import OLD_HEADS_NAME, OldHeadsModel
from piggyback_tf.methods.parts.replay import ReplayNetwork
from piggyback_tf.methods.parts.separate_gradients import separate_step, summed
from piggyback_tf.problems import is_head
from piggyback_tf.settings.methods.replay import AGEMConfig


class ProjectedModel(OldHeadsModel):
    """A functional model whose steps do not follow its labels where that would raise its added loss."""

    def train_step(self, data: Any) -> dict[str, Any]:
        return separate_step(self, data, self.take_step)

    def take_step(
        self, variables: Sequence[keras.Variable], own: Sequence[tf.Tensor], added: Sequence[tf.Tensor] | None
    ) -> None:
        """Steps along the projected gradient; see `TakeStep`."""
        assert added is not None
        own, added = summed(own), summed(added)
        shared = [place for place, variable in enumerate(variables) if id(variable) in self._shared_ids()]
        product = tf.add_n([tf.reduce_sum(own[place] * added[place]) for place in shared])
        square = tf.add_n([tf.reduce_sum(tf.square(added[place])) for place in shared])
        factor = tf.minimum(tf.math.divide_no_nan(product, square), 0.0)
        # The optimiser sums over the devices, too.
        devices = tf.distribute.get_strategy().num_replicas_in_sync
        gradients = [(one - factor * other) / devices for one, other in zip(own, added, strict=True)]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))

    def _shared_ids(self) -> set[int]:
        """Returns the ids of the variables that are of no head."""
        paths = named_variables(self).items()
        return {id(v) for path, v in paths if not is_head(path) and not path.startswith(f"{OLD_HEADS_NAME}/")}


@METHODS.register("agem")
class AGEM(ReplayNetwork):
    """Trains one network on task after task, by steps that raise no loss of the kept images of earlier ones."""

    Config = AGEMConfig
    config: AGEMConfig
    extended_model = ProjectedModel
