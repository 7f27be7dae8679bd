"""Dark experience replay++ (Buzzega, Boschini, Porrello, Abati and Calderara, NeurIPS 2020; arXiv 2004.07211).

One network learns task after task. Each step also sees images that are kept of earlier tasks, one batch of them with
the logits that the network once gave them, and another one with their labels (equation 6):

    mean cross-entropy of the new task's batch
    + alpha * mean squared distance of a batch of kept images' logits from the kept ones
    + beta * mean cross-entropy of another batch of kept images

As in the authors' code, the distance is a mean over the classes, too. It is taken over those of the image's own task.

The paper keeps logits of its images as they were when these were seen, during the training. Here they are those of the
best epoch, whose weights are the ones that are kept: of the whole sample (`parts/replay.py`), by the task's own head,
in inference mode. With alpha and beta 0 the method is `finetune_sequential`, whose optimisers and schedule it has; the
paper's is SGD.
"""

import keras
import numpy as np

from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.added_loss import AddedLoss
from piggyback_tf.methods.parts.memory import Arrays
from piggyback_tf.methods.parts.replay import KeptImages, ReplayNetwork
from piggyback_tf.settings.methods.replay import DERPPConfig

_BATCH = 64  # Images whose logits are computed at a time.


@METHODS.register("derpp")
class DERPP(ReplayNetwork):
    """Trains one network on task after task, and on images of the earlier ones with what it answered to them."""

    Config = DERPPConfig
    config: DERPPConfig
    times = 2

    def kept_of(self, model: keras.Model, images: np.ndarray) -> Arrays:
        parts = [images[start : start + _BATCH].astype(np.float32) for start in range(0, len(images), _BATCH)]
        logits = [keras.ops.convert_to_numpy(model(part, training=False)) for part in parts]
        return {"logits": np.concatenate(logits).astype(np.float32)}

    def replayed(self, kept: KeptImages) -> AddedLoss:
        alpha, beta = self.config.derpp_alpha, self.config.derpp_beta
        return lambda images, answers: alpha * kept.distance(0) + beta * kept.cross_entropy(1)
