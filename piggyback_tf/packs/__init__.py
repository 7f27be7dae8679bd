"""Task packs (a task in a small file) and the task bank (one base, many tasks).

Nothing here imports TensorFlow until a bank or a Keras model is asked for, so that a pack can be
read on a machine, or in a command, that has no use for it.
"""

from piggyback_tf.lazy import lazy_names
from piggyback_tf.packs.arrays import TaskArrays
from piggyback_tf.packs.base_fit import BaseSpec
from piggyback_tf.packs.bits import MaskBits
from piggyback_tf.packs.container import PackError
from piggyback_tf.packs.description import check_task_name
from piggyback_tf.packs.pack import TaskPack

__all__ = ["BaseSpec", "MaskBits", "PackError", "TaskArrays", "TaskBank", "TaskPack", "check_task_name"]

__getattr__, __dir__ = lazy_names(__name__, {"TaskBank": "bank"})
