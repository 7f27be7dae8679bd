"""`python -m export.verify`: compares a written export with the task bank. For packs there is `piggyback verify`.

The comparing itself is in `servable/compare.py` and `lite/compare.py`. What a LiteRT model has to answer before it is
written is in `lite/checks.py`.
"""

import dataclasses
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import DONE, NO, Answer, UsageError
from piggyback_tf.commands.common import load_base
from piggyback_tf.data import DataProblems, read_image
from piggyback_tf.data.check import find_problems
from piggyback_tf.data.unusable_files import FLAG, describe_problems, is_photo_by_name
from piggyback_tf.evaluation.text import format_bytes
from piggyback_tf.extras import need
from piggyback_tf.files import shown_path
from piggyback_tf.flags import ESSENTIALS, define, define_base_flags, define_packs_flag, given_path
from piggyback_tf.foreign_text import counted
from piggyback_tf.junk import find_files
from piggyback_tf.packs import BaseSpec, TaskPack
from piggyback_tf.packs.find import find_packs
from piggyback_tf.quiet import filtered_stderr
from piggyback_tf.targets import TARGETS

from .edge.piggyback_edge import EdgeError
from .shared.errors import ExportError
from .shared.folders import bytes_of
from .shared.packs import find_base

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone
    from piggyback_tf.packs import TaskBank

FLAGS = flags.FLAGS
_TEXT = """Compares an export with the task bank, task by task.

    {call} DIR --packs=a.task.safetensors,b.task.safetensors --images=FOLDER
    {call} DIR/base.tflite --packs=a.task.safetensors --images=FOLDER
    {call} DIR/model.tflite --packs=a.task.safetensors --images=FOLDER
    {call} DIR/a.tflite --packs=a.task.safetensors --images=FOLDER

The exit status is 0 if the answers agree, else 1.

SavedModel: every image goes through the bank and through two signatures, one for pixels and one for files (JPEG and PNG
only).
- Classification, `by_name` and `encoded`: probabilities may differ by 1e-5, and all labels must be equal.
- Any number of classes, `tag_HEIGHTxWIDTH` and `tag`: probabilities may differ by 1e-5.
- Segmentation, `segment_HEIGHTxWIDTH` and `segment`: at most 0.01 % of the pixels may differ.
- Detection, `detect_HEIGHTxWIDTH` and `detect`: sides may differ by 0.01 pixels and scores by 1e-5. At most 0.01 % of
  the boxes may be missing in one answer, not counting boxes with a score or overlap within 1e-4 of its limit.

LiteRT: for a base.tflite (design patch) or a model.tflite (switch, input), the task's file is read from the same
folder. A model of one task (plain) is compared with the task of the same name.
- Classification: the most probable class must be the bank's on all images with float32, on 99.5 % with float16, and on
  90 % with dynamic and int8. `--min_agreement` sets another share. If images are in folders named after classes, the
  errors of export and bank are printed.
- Segmentation: these shares are of pixels, and 99.99 % with float32. If a pixel has another class with float32, the
  logit of that class may exceed the next one by at most 1e-3. If the images are in `images/` and their label maps in
  `labels/`, errors are printed.
- Detection: these shares are of boxes with a score of 0.3 or more that overlap a box of the same class in the other
  answer. With float32 all boxes must be equal. If the images are in `JPEGImages/` and their boxes in `Annotations/`, as
  in PASCAL VOC, errors are printed.
With dynamic and int8, every constant of a base.tflite must also equal the task's weight to half a step of its scale.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    define_packs_flag()
    define(flags.DEFINE_string, "images", None, "Folder with image files, also in subfolders.", ESSENTIALS)
    agreement = (
        "For a .tflite: the smallest share of images on which the most probable class is the bank's. Default: 1 with "
        "float32, 0.995 with float16, 0.9 with dynamic and int8."
    )
    define(flags.DEFINE_float, "min_agreement", None, agreement, "Settings", lower_bound=0.01, upper_bound=1.0)
    skip = "Skip images that cannot be used, and list them, instead of ending with an error."
    define(flags.DEFINE_bool, "skip_broken_images", False, skip, "Settings")
    define_base_flags()


def _run(arguments: Sequence[str]) -> Answer:
    """Prints the comparison of every task; the status is 0 if all are good, else 1."""
    path = Path(arguments[0])
    is_lite = _is_lite(path)
    if is_lite:
        need("ai_edge_litert")
    if not is_lite and FLAGS.min_agreement is not None:
        raise UsageError("--min_agreement is for a .tflite; what a SavedModel answers must be equal to 1e-5.")
    folder = given_path("images")
    images = sorted(path for path in find_files(folder) if is_photo_by_name(path))
    if not images:
        raise UsageError(f"--images={folder}: there is no image file in this folder.")
    files = find_packs(FLAGS.packs)
    images = _usable(images, f"--images={folder}")
    base, size = find_base(files, FLAGS.backbone, FLAGS.weights), None
    if is_lite:
        from .lite.image_size import image_size_of

        size = image_size_of(path)
    backbone = load_base(*base, size)
    from piggyback_tf.packs import TaskBank

    spec, bank = BaseSpec.of(backbone), TaskBank(backbone)
    packs = [TaskPack.load(file, spec) for file in files]
    for pack in packs:
        bank.add(pack)
    with filtered_stderr():  # oneDNN tells which types it leaves to others.
        if is_lite:
            tasks = _verify_lite(path, backbone, bank, packs, images, FLAGS.min_agreement)
        else:
            tasks = _verify_saved_model(path, bank, images)
    good = all(task["good"] for task in tasks)
    value = {"export": str(path), "images": len(images), "good": good, "tasks": tasks}
    return Answer(value, status=DONE if good else NO)


def _usable(paths: list[Path], name: str) -> list[Path]:
    """Decodes images before the base is loaded; returns those that can be compared, which may have to be all.

    Raises:
        DataProblems: If others are not to be left out, or there are only others.
    """
    found = find_problems(lambda index: read_image(paths[index]), lambda index: shown_path(paths[index]), len(paths))
    if found and (not FLAGS.skip_broken_images or len(found) == len(paths)):
        raise DataProblems(found, name, flag="" if FLAGS.skip_broken_images else FLAG)
    if found:
        print(describe_problems(found, name, flag=""))
    broken = {problem.place for problem in found}
    return [path for path in paths if shown_path(path) not in broken]


def _is_lite(path: Path) -> bool:
    """Whether an export is a model for LiteRT, and no SavedModel."""
    if not path.exists():
        raise UsageError(f"{str(path)!r}: there is no such file or folder.")
    if path.is_dir() and (models := sorted(path.glob("*.tflite"))):
        raise UsageError(f"{str(path)!r} holds models for LiteRT; name one of them, such as {str(models[0])!r}.")
    if path.is_file() and path.suffix != ".tflite":
        raise UsageError(f"{str(path)!r} is no folder of an export, and no base.tflite or model.tflite.")
    return path.is_file()


def _verify_saved_model(folder: Path, bank: "TaskBank", images: Sequence[Path]) -> list[dict[str, Any]]:
    """Prints how a SavedModel compares with the bank, and returns it for each task, and whether it is `good`.

    Args:
        folder: The export, or a version of it.
        bank: The tasks to compare.
        images: Image files.

    Raises:
        UsageError: If the export lacks a task.
        ExportError: If it is none.
    """
    import tensorflow as tf

    from .servable.compare import compare
    from .servable.compare_answers import SHARE, compare_answers
    from .servable.folder import find_version, read_description

    folder = find_version(folder)
    known = {entry["task"] for entry in read_description(folder)["tasks"]}
    if missing := sorted(set(bank.names) - known):
        raise UsageError(f"The export {str(folder)!r} has no task {missing[0]!r}; it has {', '.join(sorted(known))}.")
    before, started = _memory(), time.perf_counter()
    model = tf.saved_model.load(str(folder))
    loading, tasks = time.perf_counter() - started, []
    print(f"{folder}: {counted(len(known), 'task')}, {counted(len(images), 'image')}; loaded in {loading:.1f} s")
    for task in bank.names:
        of_classes = TARGETS[bank.info(task)["problem"]].served_first
        found = (compare if of_classes else compare_answers)(model, bank, task, images)
        print(f"  {found.text}")
        tasks.append({**dataclasses.asdict(found), "good": found.good})
    print(f"memory: {format_bytes(_memory() - before)} more at the most; on disk {format_bytes(bytes_of([folder]))}")
    limits = "to 1e-5" + (
        f", whole numbers and boxes to {100 * SHARE:.2f} %" if any("whole" in task for task in tasks) else ""
    )
    print(f"equal {limits}" if all(task["good"] for task in tasks) else f"NOT equal {limits}")
    return tasks


def _verify_lite(
    path: Path,
    backbone: "Backbone",
    bank: "TaskBank",
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
    export.answer(np.zeros([*packs[0].image_shape, 3], np.float32))
    memory = max(0, _resident() - before)
    print(
        f"{path}: design {export.design}, quantisation {export.quantize}, {counted(len(images), 'image')}; "
        f"read and verified in {1e3 * loading:.0f} ms"
    )
    compared = []
    for pack in packs:
        compared.append(compare_lite(export, bank, pack, images, min_agreement=min_agreement))
        print(describe(compared[-1]))
        tasks.append({**dataclasses.asdict(compared[-1]), "good": compared[-1].good})
    print(f"memory: {format_bytes(memory)} with a task; on disk {format_bytes(path.stat().st_size)}")
    holds = all(task["good"] for task in tasks)
    print(f"{'holds' if holds else 'does NOT hold'}: {promise(export, compared)}")
    return tasks


def _memory() -> int:
    """Returns the largest memory that the process has taken so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
    """Returns the memory that the process takes now, in bytes; where there is no /proc, the largest so far."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _memory()
    return pages * resource.getpagesize()


PROGRAM = Program(
    _TEXT,
    define_flags,
    _run,
    required=("packs", "images"),
    arguments=("EXPORT",),
    errors=(ExportError, EdgeError),
)

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
