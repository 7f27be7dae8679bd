"""Keeps by which base and data a run began, in `found.json`, and refuses to go on with others."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from piggyback_tf.backbones import Backbone, Structure
from piggyback_tf.backbones.structure_record import check_same_computation
from piggyback_tf.data import TaskData
from piggyback_tf.file_names import FOUND_FILE
from piggyback_tf.files import write_atomically
from piggyback_tf.training.errors import TrainingError
from piggyback_tf.training.run_folder import check_settings, damaged

# What `describe_data` says of the images that no decision uses.
_TEST_IMAGES = ("test_images", "test_digest")


def describe_data(data: TaskData) -> dict[str, Any]:
    """Returns what a resumed run must find again: classes, and labels or boxes, names and sizes of all images.

    Not their dates and their folder: a copy of the data on another machine is the same data.
    """
    found: dict[str, Any] = {"class_names": list(data.class_names)}
    for split, source in data.splits.items():
        digest = hashlib.sha256(source.known_targets())
        for index in range(len(source)):
            digest.update(f"{source.key(index)}\0{source.stored_bytes(index)}\0".encode("utf-8", "surrogateescape"))
        found |= {f"{split}_images": len(source), f"{split}_digest": digest.hexdigest()}
    return found


def describe_tasks(
    tasks: Mapping[str, TaskData], measured: Collection[str], *, in_turn: bool
) -> tuple[dict[str, Any], list[str]]:
    """Returns what describes the data of a run, and the names in it of test images that were not measured.

    Args:
        tasks: The data, by task.
        measured: The tasks whose test images were measured.
        in_turn: Whether the run is one of tasks in turn, whose names stand in front of what was found of them.
    """
    prefixes = {task: f"{task}: " if in_turn else "" for task in tasks}
    data = {prefixes[task] + name: value for task in tasks for name, value in describe_data(tasks[task]).items()}
    return data, [prefixes[task] + name for task in tasks if task not in measured for name in _TEST_IMAGES]


def check_found(folder: Path, backbone: Backbone, data: Mapping[str, Any], unmeasured: Collection[str] = ()) -> None:
    """Writes what a new run found, or compares it with what the run was started with.

    Args:
        folder: The run's folder.
        backbone: The base.
        data: What describes the data, as JSON values.
        unmeasured: The names in it that nothing depends on yet, such as those of test images that were not measured.
            They may have changed: a sentence in the log says so, and what is there now counts.

    Raises:
        TrainingError: If the folder was used with another base or other data.
    """
    structure = backbone.structure.to_json()
    earlier = _read(folder / FOUND_FILE)
    if earlier is not None and earlier.get("base_hash") == backbone.hash:
        try:
            kept = Structure.from_json(earlier)
        except ValueError as error:
            raise damaged(folder / FOUND_FILE, error) from error
        check_same_computation(f"The run in {str(folder)!r}", kept, backbone.structure, TrainingError)
        # Answers of two machines are not the same to the last bit, and a run of before may have none.
        structure = {name: earlier[name] for name in structure if name in earlier}
    found = {"base_hash": backbone.hash, **structure, **data}
    changed = []
    if earlier is not None:
        changed = [name for name in unmeasured if earlier.get(name) != found.get(name)]
    kept = {name: value for name, value in found.items() if name not in changed}
    kept |= {name: earlier[name] for name in changed if name in earlier}
    check_settings(folder, kept, file=FOUND_FILE, prefix="")
    if changed:
        logging.warning(
            "The test images are no longer those with which the run in %s began (%s). Nothing was decided or measured "
            "by them; the images that are there now are measured.",
            folder,
            ", ".join(changed),
        )
        write_atomically(folder / FOUND_FILE, json.dumps(found, indent=2, sort_keys=True) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    """Returns what is in the file; None if it is not there, or is damaged, which `check_settings` says."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
