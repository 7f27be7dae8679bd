"""Compares an export with the task bank, task by task."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from piggyback_tf.commands.answers import DONE, NO, Answer, UsageError
from piggyback_tf.commands.common import load_base
from piggyback_tf.commands.program import Program
from piggyback_tf.data import DataError, DataProblems, Problem, read_image
from piggyback_tf.data.cache import decode_all
from piggyback_tf.data.images import has_image_extension
from piggyback_tf.data.problems import problem_of
from piggyback_tf.extras import need
from piggyback_tf.files import shown_path
from piggyback_tf.flags import ESSENTIALS, define, define_base_flags, given_path
from piggyback_tf.junk import find_files
from piggyback_tf.packs import BaseSpec, TaskPack
from piggyback_tf.packs.find import find_packs
from piggyback_tf.quiet import filtered_stderr

from .edge.piggyback_edge import EdgeError
from .shared.errors import ExportError
from .shared.packs import find_base

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


def _run(arguments: Sequence[str]) -> Answer:
    """Prints the comparison of every task; the status is 0 if all are good, else 1."""
    path = Path(arguments[0])
    is_lite = _is_lite(path)
    if is_lite:
        need("ai_edge_litert")
    if not is_lite and FLAGS.min_agreement is not None:
        raise UsageError("--min_agreement is for a .tflite; what a SavedModel answers must be equal to 1e-5.")
    folder = given_path("images")
    images = sorted(path for path in find_files(folder) if has_image_extension(path))
    if not images:
        raise UsageError(f"--images={folder}: there is no image file in this folder.")
    files = find_packs(FLAGS.packs)
    _check_images(images, f"--images={folder}")
    backbone = load_base(*find_base(files[0], FLAGS.backbone, FLAGS.weights))
    from piggyback_tf.packs import TaskBank

    from .verification import verify_lite, verify_saved_model

    spec, bank = BaseSpec.of(backbone), TaskBank(backbone)
    packs = [TaskPack.load(file, spec) for file in files]
    for pack in packs:
        bank.add(pack)
    with filtered_stderr():  # oneDNN tells which types it leaves to others.
        if is_lite:
            tasks = verify_lite(path, backbone, bank, packs, images, FLAGS.min_agreement)
        else:
            tasks = verify_saved_model(path, bank, images)
    good = all(task["good"] for task in tasks)
    value = {"export": str(path), "images": len(images), "good": good, "tasks": tasks}
    return Answer(value, status=DONE if good else NO)


def _check_images(paths: Sequence[Path], name: str) -> None:
    """Decodes images before the base is loaded, and raises `DataProblems` with all that cannot be compared."""

    def attempt(index: int) -> Problem | None:
        try:
            read_image(paths[index])
        except DataError as error:
            return problem_of(error, shown_path(paths[index]))
        return None

    if problems := [problem for problem in decode_all(attempt, len(paths)) if problem]:
        raise DataProblems(problems, name, flag="")


def _is_lite(path: Path) -> bool:
    """Whether an export is a model for LiteRT, and no SavedModel."""
    if not path.exists():
        raise UsageError(f"{str(path)!r}: there is no such file or folder.")
    if path.is_dir() and (models := sorted(path.glob("*.tflite"))):
        raise UsageError(f"{str(path)!r} holds models for LiteRT; name one of them, such as {str(models[0])!r}.")
    if path.is_file() and path.suffix != ".tflite":
        raise UsageError(f"{str(path)!r} is no folder of an export, and no base.tflite or model.tflite.")
    return path.is_file()


PROGRAM = Program(_TEXT, define_flags, _run, required=("packs", "images"), arguments=1, errors=(ExportError, EdgeError))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
