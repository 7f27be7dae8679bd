"""The base of the packs that a command line names."""

import argparse
from typing import TYPE_CHECKING

from piggyback_tf.commands.common import choose_base, load_base
from piggyback_tf.packs import TaskPack

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone


def check_base_of(file: str, backbone: str | None, weights: str | None) -> tuple[TaskPack, tuple[str, str]]:
    """Reads a pack and finds its base, as far as that goes without TensorFlow.

    Args:
        file: The pack's file or URL.
        backbone: Name of the base; that in the pack if None.
        weights: Its weights; those that the pack names if None.

    Returns:
        What `load_base_of` takes.

    Raises:
        UsageError: If the base or its weights cannot be found.
        PackError: If the file is no good pack.
    """
    pack = TaskPack.load(file)
    return pack, choose_base(pack, argparse.Namespace(backbone=backbone, weights=weights))


def load_base_of(pack: TaskPack, base: tuple[str, str]) -> "Backbone":
    """Loads TensorFlow, quietly, and the base that `check_base_of` found.

    Raises:
        UsageError: If its weights cannot be loaded.
    """
    return load_base(pack, base)
