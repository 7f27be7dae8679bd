"""The packs that a command line means, and their base."""

import argparse
import glob
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.backbones import Backbone
from piggyback_tf.commands.common import UsageError, choose_base, load_base
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.pack import PACK_SUFFIX
from piggyback_tf.packs.remote import is_url


def find_packs(sources: Sequence[str]) -> list[str]:
    """Returns the files of packs that are meant.

    Args:
        sources: Files, URLs, folders (all `*.task.safetensors` in them) and glob patterns.

    Returns:
        Files and URLs in the order of the sources, those of one folder or pattern sorted.

    Raises:
        UsageError: If a source stands for no file.
    """
    found = []
    for source in sources:
        if is_url(source) or Path(source).is_file():
            matches = [source]
        elif Path(source).is_dir():
            matches = sorted(str(path) for path in Path(source).glob(f"*{PACK_SUFFIX}"))
        else:
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 (patterns may be absolute)
        if not matches and Path(source).is_dir():
            raise UsageError(f"--packs={source}: the folder has no file *{PACK_SUFFIX}.")
        if not matches:
            raise UsageError(f"--packs={source}: there is no such file or folder, and as a pattern it matches nothing.")
        found += matches
    if not found:
        raise UsageError("--packs= names no pack.")
    return found


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
