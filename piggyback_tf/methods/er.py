"""Experience replay (Chaudhry, Rohrbach, Elhoseiny, Ajanthan, Dokania, Torr and Ranzato, On Tiny Episodic Memories in
Continual Learning, 2019; arXiv 1902.10486; section 3 and algorithm 1).

One network learns task after task, and each step also sees images that are kept of earlier tasks:

    mean cross-entropy of the new task's batch + mean cross-entropy of a batch of kept images

The paper has one mean over both batches, which is half of this if they are equally large. It keeps images while they
pass once, and has one head. Here a task is learned in several epochs, a uniform sample of its images is kept at its end
(`parts/replay.py`), and each image is judged by its own task's head. Optimisers and schedule are those of
`finetune_sequential`.
"""

from piggyback_tf.methods.base import METHODS
from piggyback_tf.methods.parts.replay import ReplayNetwork
from piggyback_tf.settings.methods.replay import ERConfig


@METHODS.register("er")
class ER(ReplayNetwork):
    """Trains one network on task after task, and on some images of the earlier ones."""

    Config = ERConfig
    config: ERConfig
