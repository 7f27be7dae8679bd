"""Devices: one or several GPUs, or the CPU."""

import tensorflow as tf

from piggyback_tf.registry import unknown_name_message

STRATEGIES = ("auto", "none", "mirrored")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Returns the strategy in whose scope the backbone and the task's model are built.

    Args:
        name: `"none"`: one device. `"mirrored"`: `MirroredStrategy` over all GPUs, or over all logical CPUs if there
            is no GPU. `"auto"`: mirrored if there are several GPUs, otherwise none.

    Raises:
        ValueError: If the name is none of these.
    """
    if name not in STRATEGIES:
        raise ValueError(unknown_name_message("strategy", name, list(STRATEGIES)))
    gpus = tf.config.list_logical_devices("GPU")
    if name == "mirrored" or (name == "auto" and len(gpus) > 1):
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()
