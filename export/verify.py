"""Compares an export with the task bank, task by task."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
from absl import flags

from piggyback_tf.backbones import Backbone
from piggyback_tf.commands.common import UsageError
from piggyback_tf.commands.program import Program
from piggyback_tf.data.images import has_image_extension
from piggyback_tf.flags import ESSENTIALS, define, define_base_flags
from piggyback_tf.junk import find_files
from piggyback_tf.packs import BaseSpec, TaskBank, TaskPack
from piggyback_tf.packs.find import find_packs

from .base import load_base_of
from .edge.piggyback_edge import EdgeError
from .lite.compare import compare_lite, describe, enter_task, open_export, promise
from .servable.compare import compare
from .servable.folder import ExportError, find_version, read_description

FLAGS = flags.FLAGS
_TEXT = """Compares an export with the task bank, task by task.

    {call} DIR --packs=a.task.safetensors,b.task.safetensors --images=FOLDER
    {call} DIR/base.tflite --packs=a.task.safetensors --images=FOLDER
    {call} DIR/model.tflite --packs=a.task.safetensors --images=FOLDER
    {call} DIR/a.tflite --packs=a.task.safetensors --images=FOLDER

Of a SavedModel, every image goes through the bank and through the signatures `by_name` (pixels) and `encoded` (the file
itself; JPEG and PNG only). Exit status: 0 if no probability differs by more than 1e-5 and every label is the same,
else 1.

Of a base.tflite (design patch) or a model.tflite (switch, input), every task is put on it from its file beside it; of
models of one task (plain) it is the one of its name. Every image goes through LiteRT. Exit status: 0 if the most
probable class is the bank's always with float32, on 99.5 % of the images with float16, and on 90 % with dynamic and
int8, with which every constant of a base.tflite must be the task's weight to half a step of its scale, too. Else 1.
`--min_agreement` is another share of images. If images are in folders of the names of classes, the errors of both are
printed.
"""
Verify = Callable[[Path, Backbone, TaskBank, list[TaskPack], list[Path]], bool]


def run(path: Path) -> bool:
    """Prints the comparison of every task; returns whether all are good."""
    verify = _choose(path)
    if verify is _verify_saved_model and FLAGS.min_agreement is not None:
        raise UsageError("--min_agreement is for a .tflite; what a SavedModel answers must be equal to 1e-5.")
    images = sorted(path for path in find_files(FLAGS.images) if has_image_extension(path))
    if not images:
        raise UsageError(f"--images={FLAGS.images}: there is no image file in this folder.")
    files = find_packs(FLAGS.packs)
    backbone = load_base_of(TaskPack.load(files[0]), FLAGS.backbone, FLAGS.weights)
    spec, bank = BaseSpec.of(backbone), TaskBank(backbone)
    packs = [TaskPack.load(file, spec) for file in files]
    for pack in packs:
        bank.add(pack)
    return verify(path, backbone, bank, packs, images)


def _choose(path: Path) -> Verify:
    """Returns what compares this kind of export."""
    if path.suffix == ".tflite" and not path.exists():
        raise UsageError(f"{str(path)!r}: there is no such file.")
    if not path.is_file():
        return _verify_saved_model
    if path.suffix != ".tflite":
        raise UsageError(f"{str(path)!r} is no folder of an export, and no base.tflite or model.tflite.")
    return _verify_lite


def _verify_saved_model(
    folder: Path, backbone: Backbone, bank: TaskBank, packs: list[TaskPack], images: list[Path]
) -> bool:
    del backbone, packs
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
        files += f" ({found.refused} refused)" if found.refused else ""
        print(
            f"  {task}: largest difference {found.pixels:.1e} with pixels, {files} with files; labels "
            f"{'equal' if found.labels else 'NOT equal'}; {found.export_ms:.1f} ms an image (bank {found.bank_ms:.1f})"
        )
        good &= found.good
    print(f"memory: {_memory() - before:.0f} MB more at the most; on disk {_disk(folder) / 2**20:.1f} MB")
    print("equal to 1e-5" if good else "NOT equal to 1e-5")
    return good


def _verify_lite(path: Path, backbone: Backbone, bank: TaskBank, packs: list[TaskPack], images: list[Path]) -> bool:
    before, started = _resident(), time.perf_counter()
    export = open_export(path, backbone)
    loading, good = time.perf_counter() - started, True
    # With a task and after a prediction, before the bank takes memory for its own.
    enter_task(export, packs[0])
    export.answer(np.zeros([backbone.image_size, backbone.image_size, 3], np.float32))
    memory = _resident() - before
    print(
        f"{path}: design {export.design}, quantisation {export.quantize}, {len(images)} images; "
        f"read and verified in {1e3 * loading:.0f} ms"
    )
    for pack in packs:
        found = compare_lite(export, bank, pack, images, min_agreement=FLAGS.min_agreement)
        print(describe(found))
        good &= found.good
    print(f"memory: {memory:.1f} MB with a task; on disk {path.stat().st_size / 2**20:.1f} MB")
    print(f"{'holds' if good else 'does NOT hold'}: {promise(export, FLAGS.min_agreement)}")
    return good


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


def define_flags() -> None:
    """Defines the flags of the command."""
    define(flags.DEFINE_list, "packs", None, "Packs: files, URLs, folders or glob patterns.", ESSENTIALS)
    define(flags.DEFINE_string, "images", None, "Folder with image files, also in subfolders.", ESSENTIALS)
    agreement = (
        "Of a .tflite: the least share of images on which the most probable class must be the bank's. Default: 1 with "
        "float32, 0.995 with float16, 0.9 with dynamic and int8."
    )
    define(flags.DEFINE_float, "min_agreement", None, agreement, "Settings", lower_bound=0.01, upper_bound=1.0)
    define_base_flags()


PROGRAM = Program(
    _TEXT,
    define_flags,
    lambda arguments: 0 if run(Path(arguments[0])) else 1,
    required=("packs", "images"),
    arguments=1,
    errors=(ExportError, EdgeError),
)

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
