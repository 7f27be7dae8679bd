"""Compares an export with the task bank, task by task.

    python -m export.verify DIR --packs=a.task.safetensors,b.task.safetensors --images=FOLDER
    python -m export.verify DIR/base.tflite --packs=a.task.safetensors --images=FOLDER

Of a SavedModel, every image goes through the bank and through the signatures `by_name` (pixels) and `encoded` (the file
itself; JPEG and PNG only). Exit status: 0 if no probability differs by more than 1e-5 and every label is the same,
else 1.

Of a base.tflite, every task is installed in memory from its file beside it, and every image goes through LiteRT. Exit
status: 0 if the most probable class is the bank's as often as it should be: always with float32, on 99.5 % of the
images with float16, 95 % with dynamic and 90 % with int8, else 1. If images are in folders of the classes' names, the
errors of both are printed.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import app, flags

from export.edge.piggyback_edge import EdgeError
from export.lite.compare import compare_patched, describe, load_patched
from export.lite.folder import MANIFEST_FILE
from export.packs import find_packs, load_base_of
from export.servable.compare import compare
from export.servable.folder import ExportError, find_version, read_description
from piggyback_tf.commands.common import UsageError
from piggyback_tf.data import DataError
from piggyback_tf.data.images import has_image_extension
from piggyback_tf.flags import define_base_flags
from piggyback_tf.packs import PackError, TaskBank, TaskPack

FLAGS = flags.FLAGS


def run(path: Path) -> bool:
    """Prints the comparison of every task; returns whether all are good."""
    verify = _choose(path)
    images = sorted(path for path in Path(FLAGS.images).rglob("*") if path.is_file() and has_image_extension(path))
    if not images:
        raise UsageError(f"--images={FLAGS.images}: there is no image file in this folder.")
    packs = find_packs(FLAGS.packs)
    bank = TaskBank(load_base_of(TaskPack.load(packs[0]), FLAGS.backbone, FLAGS.weights))
    for pack in packs:
        bank.add(pack)
    return verify(path, bank, images)


def _choose(path: Path) -> Callable[[Path, TaskBank, list[Path]], bool]:
    """Returns what compares this kind of export."""
    if not path.is_file():
        return _verify_saved_model
    if path.suffix != ".tflite" or not (path.parent / MANIFEST_FILE).is_file():
        raise UsageError(
            f"{str(path)!r} is no folder of an export, and no base.tflite with a {MANIFEST_FILE} beside it."
        )
    return _verify_patched


def _verify_saved_model(folder: Path, bank: TaskBank, images: list[Path]) -> bool:
    folder = find_version(folder)
    known = {entry["task"] for entry in read_description(folder)["tasks"]}
    if missing := sorted(set(bank.names) - known):
        raise UsageError(f"The export {str(folder)!r} has no task {missing[0]!r}; it has {', '.join(sorted(known))}.")
    before, started = _memory(), time.perf_counter()
    model = tf.saved_model.load(str(folder))
    loading, good = time.perf_counter() - started, True
    print(f"{folder}: {len(known)} tasks, {len(images)} images; loaded in {loading:.1f} s")
    for task in bank.names:
        found = compare(model, bank, task, images)
        files = "no JPEG or PNG" if found.files is None else f"{found.files:.1e}"
        print(
            f"  {task}: largest difference {found.pixels:.1e} with pixels, {files} with files; labels "
            f"{'equal' if found.labels else 'NOT equal'}; {found.export_ms:.1f} ms an image (bank {found.bank_ms:.1f})"
        )
        good &= found.good
    print(f"memory: {_memory() - before:.0f} MB more at the most; on disk {_disk(folder) / 2**20:.1f} MB")
    print("equal to 1e-5" if good else "NOT equal to 1e-5")
    return good


def _verify_patched(path: Path, bank: TaskBank, images: list[Path]) -> bool:
    before, started = _memory(), time.perf_counter()
    model = load_patched(path)
    loading, good = time.perf_counter() - started, True
    quantize = model.base.manifest.quantize
    print(f"{path}: quantisation {quantize}, {len(images)} images; read and verified in {1e3 * loading:.0f} ms")
    for task in bank.names:
        found = compare_patched(model, path.parent, bank, task, images)
        print(describe(found))
        good &= found.good
    print(f"memory: {_memory() - before:.0f} MB more at the most; on disk {path.stat().st_size / 2**20:.1f} MB")
    print(f"{'agrees' if good else 'does NOT agree'} with the bank as {quantize} should")
    return good


def _memory() -> float:
    """Returns the largest memory that the process has taken so far, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def _disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError(
            "One export is needed, a folder or a base.tflite: python -m export.verify DIR --packs=... --images=..."
        )
    try:
        good = run(Path(argv[1]))
    except (UsageError, PackError, ExportError, EdgeError, DataError, ValueError, OSError) as error:
        print(f"export.verify: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    define_base_flags()
    flags.DEFINE_list("packs", None, "Packs: files, URLs, folders or glob patterns.", required=True)
    flags.DEFINE_string("images", None, "Folder with image files, also in subfolders.", required=True)
    app.run(main)
