"""Masks learned on one of the three sets, as the benchmarks of what is beyond the paper need them."""

from pathlib import Path
from typing import Any

from common import realdata
from tasks import INPUTS, MASKS, state_folder

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import load_data
from piggyback_tf.file_names import folders_of, pack_name
from piggyback_tf.methods.piggyback import PiggybackConfig
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.codec import encode
from piggyback_tf.sequences import SequenceSettings, run_sequence

USUAL = "usual"  # The start of masks, and the price of dropping weights, that are the default.


def pack_file(name: str, state: str) -> Path:
    """Returns where `learn_masks` leaves the pack of a set."""
    return folders_of(state_folder(state), [name])[name] / pack_name(name)


def learn_masks(backbone: Backbone, name: str, seed: int, config: PiggybackConfig, state: str) -> dict[str, Any]:
    """Learns masks on a set, and measures them on its test split.

    Args:
        backbone: The network.
        name: One of the sets.
        seed: Seed of the training and of the validation split.
        config: Settings of the masks.
        state: Names the run's `state_folder`, where it goes on if it was interrupted, and where its pack is.
    """
    settings = SequenceSettings("piggyback", config, MASKS.config(seed), INPUTS)
    data = load_data(f"folder:{realdata() / name}", seed=seed)
    (step,) = run_sequence(state_folder(state), backbone, {name: data}, settings)["steps"]
    pack = TaskPack.load(pack_file(name, state))
    return {
        "test_error": step["errors"][name]["top1_error"],
        "test_images": step["errors"][name]["images"],
        "val_errors": step["history"]["val_error"],
        "best_epoch": step["best_epoch"],
        "zeros_percent": 100 * pack.zeros_total,
        "mask_bytes": encode(pack.masks, pack.mask_kind).nbytes,
        "pack_bytes": pack_file(name, state).stat().st_size,
        "seconds": round(step["seconds"], 1),
    }
