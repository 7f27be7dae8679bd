"""What `verify` prints of each kind of export."""

import dataclasses
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.packs import TaskBank, TaskPack

from .servable.compare import compare
from .servable.folder import find_version, read_description


def verify_saved_model(folder: Path, bank: TaskBank, images: Sequence[Path]) -> list[dict[str, Any]]:
    """Prints how a SavedModel compares with the bank, and returns it for each task, and whether it is `good`.

    Args:
        folder: The export, or a version of it.
        bank: The tasks to compare.
        images: Image files.

    Raises:
        UsageError: If the export lacks a task.
        ExportError: If it is none.
    """
    folder = find_version(folder)
    known = {entry["task"] for entry in read_description(folder)["tasks"]}
    if missing := sorted(set(bank.names) - known):
        raise UsageError(f"The export {str(folder)!r} has no task {missing[0]!r}; it has {', '.join(sorted(known))}.")
    before, started = _memory(), time.perf_counter()
    model = tf.saved_model.load(str(folder))
    loading, tasks = time.perf_counter() - started, []
    print(f"{folder}: {len(known)} tasks, {len(images)} images; loaded in {loading:.1f} s")
    for task in bank.names:
        found = compare(model, bank, task, images)
        files = "no JPEG or PNG" if found.files is None else f"{found.files:.1e}"
        files += f" ({found.refused} refused)" if found.refused else ""
        print(
            f"  {task}: largest difference {found.pixels:.1e} with pixels, {files} with files; labels "
            f"{'equal' if found.labels else 'NOT equal'}; {found.export_ms:.1f} ms an image (bank {found.bank_ms:.1f})"
        )
        tasks.append({**dataclasses.asdict(found), "good": found.good})
    print(f"memory: {_memory() - before:.0f} MB more at the most; on disk {_disk(folder) / 2**20:.1f} MB")
    print("equal to 1e-5" if all(task["good"] for task in tasks) else "NOT equal to 1e-5")
    return tasks


def verify_lite(
    path: Path,
    backbone: Backbone,
    bank: TaskBank,
    packs: Sequence[TaskPack],
    images: Sequence[Path],
    min_agreement: float | None,
) -> list[dict[str, Any]]:
    """Prints how a model for LiteRT compares with the bank, and returns it for each task, and whether it is `good`.

    Args:
        path: The file of the model, with those of the tasks beside it.
        backbone: The base.
        bank: The tasks to compare, on the base.
        packs: The same tasks.
        images: Image files.
        min_agreement: The least share of images with the same class; None for what the type promises.

    Raises:
        ExportError, EdgeError: If a file is not what it should be.
    """
    from .lite.compare import compare_lite, describe, enter_task, open_export, promise
    from .lite.runtime import load_litert

    load_litert()
    before, started = _resident(), time.perf_counter()
    export = open_export(path, backbone)
    loading, tasks = time.perf_counter() - started, []
    # With a task and after a prediction, before the bank takes memory for its own.
    enter_task(export, packs[0])
    export.answer(np.zeros([backbone.image_size, backbone.image_size, 3], np.float32))
    memory = _resident() - before
    print(
        f"{path}: design {export.design}, quantisation {export.quantize}, {len(images)} images; "
        f"read and verified in {1e3 * loading:.0f} ms"
    )
    for pack in packs:
        found = compare_lite(export, bank, pack, images, min_agreement=min_agreement)
        print(describe(found))
        tasks.append({**dataclasses.asdict(found), "good": found.good})
    print(f"memory: {memory:.1f} MB with a task; on disk {path.stat().st_size / 2**20:.1f} MB")
    holds = all(task["good"] for task in tasks)
    print(f"{'holds' if holds else 'does NOT hold'}: {promise(export, min_agreement)}")
    return tasks


def _memory() -> float:
    """Returns the largest memory that the process has taken so far, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _resident() -> float:
    """Returns the memory that the process takes now, in megabytes; where there is no /proc, the largest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _memory()
    return pages * resource.getpagesize() / 2**20


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
