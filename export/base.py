"""The base of the packs that a command line names."""

import argparse

from piggyback_tf.backbones import Backbone
from piggyback_tf.commands.common import choose_base, load_base
from piggyback_tf.packs import TaskPack


def load_base_of(pack: TaskPack, backbone: str | None, weights: str | None) -> Backbone:
    """Loads the base of a pack.

    Args:
        pack: The pack.
        backbone: Name of the base; that in the pack if None.
        weights: Its weights; those that the pack names if None.

    Raises:
        UsageError: If the base or its weights cannot be found.
    """
    return load_base(pack, choose_base(pack, argparse.Namespace(backbone=backbone, weights=weights)))
