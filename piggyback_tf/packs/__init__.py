"""Task packs (a task in a small file) and the task bank (one base, many tasks).

Nothing here imports TensorFlow until a bank or a Keras model is asked for, so that a pack can be
read on a machine, or in a command, that has no use for it.
"""

from piggyback_tf.packs.pack import MaskBits, PackError, TaskPack, check_task_name

__all__ = ["MaskBits", "PackError", "TaskBank", "TaskPack", "check_task_name"]


def __getattr__(name: str):
    if name == "TaskBank":
        from piggyback_tf.packs.bank import TaskBank

        return TaskBank
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
