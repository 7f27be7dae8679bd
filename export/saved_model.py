"""One base and any number of tasks as one SavedModel for TensorFlow Serving."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags, logging

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import choose_base, load_base
from piggyback_tf.files import check_writable
from piggyback_tf.flags import (
    ESSENTIALS,
    define,
    define_base_flags,
    define_config_flags,
    define_packs_flag,
    given_path,
    read_config,
)
from piggyback_tf.foreign_text import some
from piggyback_tf.lazy import lazy_names
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.find import find_packs
from piggyback_tf.quiet import load_tensorflow

from .servable.options import ExportOptions
from .shared.errors import ExportError
from .shared.packs import find_base

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone

    from .servable.write import add_tasks, export_saved_model

__all__ = ["add_tasks", "export_saved_model"]

# A command line is checked before TensorFlow is loaded.
__getattr__, __dir__ = lazy_names(__package__, dict.fromkeys(__all__, "servable.write"), __name__)

FLAGS = flags.FLAGS
_TEXT = """One base and any number of tasks as one SavedModel for TensorFlow Serving.

    {call} --packs=a.task.safetensors,b.task.safetensors --output=DIR
    {call} --add_to=DIR/3 --packs=c.task.safetensors

The first command writes a SavedModel to `DIR/1`, or to the next version if there are versions already. Its signatures
depend on the tasks. One class per image: `serving_default`, `by_name` and `encoded`. Any number of classes: `tag` and
`tag_HEIGHTxWIDTH`. A class for each pixel: `segment` and `segment_HEIGHTxWIDTH`. Boxes: `detect` and
`detect_HEIGHTxWIDTH`. The command also writes `DIR/with_mask/1`, with the signatures `with_mask`, `find_tasks` and
`tasks`.

The second command writes `DIR/4` from `DIR/3` and the new packs. It needs no old packs. It needs the backbone's weights
only if a new segmentation or detection task has a head, an image size or a number of classes that no task of the export
has.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    text = flags.DEFINE_string
    define_packs_flag()
    define(text, "output", None, "Folder of the export; with --add_to the old export's by default.", ESSENTIALS)
    define(text, "add_to", None, "The export, or a version of it, to add the packs to.", ESSENTIALS)
    define_config_flags(ExportOptions)
    version = "Version to write; by default that after the highest one."
    define(flags.DEFINE_integer, "version", None, version, "Settings", lower_bound=1)
    define_base_flags()


def _run(arguments: list[str]) -> Answer:
    """Does what the flags say; the answer is the folder of the version."""
    del arguments
    files, output, old = find_packs(FLAGS.packs), given_path("output"), given_path("add_to")
    if old is not None:
        if not old.is_dir():
            raise UsageError(f"--add_to={old}: there is no such folder.")
        # Only what was given on the command line is changed.
        fields = (field.name for field in dataclasses.fields(ExportOptions))
        changes = {name: FLAGS[name].value for name in fields if FLAGS[name].present}
        if output is not None:
            check_writable(output)
        load_tensorflow()
        from .servable.write import add_tasks

        def find(pack: TaskPack) -> "Backbone":
            return load_base(pack, choose_base(pack, FLAGS.backbone, FLAGS.weights))

        return _answer(add_tasks(old, files, output, version=FLAGS.version, backbone=find, **changes))
    if output is None:
        raise UsageError("--output is missing: the folder of the export.")
    from .servable.folder import check_is_for_exports

    # Loading the base takes seconds.
    check_writable(output)
    check_is_for_exports(output)
    options, base = read_config(ExportOptions), find_base(files, FLAGS.backbone, FLAGS.weights)
    backbone = load_base(*base)
    from .servable.write import export_saved_model

    before = _last_tasks(output)
    answer = _answer(export_saved_model(backbone, files, output, options, version=FLAGS.version))
    if gone := [task for task in before if task not in answer.value["tasks"]]:
        logging.warning(
            "Version %d lacks tasks of the version before it: %s. A server that finds it no longer answers them. "
            "--add_to=%s keeps them.",
            answer.value["version"],
            some(gone),
            output,
        )
    return answer


def _last_tasks(output: Path) -> list[str]:
    """Returns the tasks of the newest version in a folder; none if there is no version."""
    from .servable.folder import is_version, read_description, versions_in

    newest = output / str(max(versions_in(output), default=0))
    return [entry["task"] for entry in read_description(newest)["tasks"]] if is_version(newest) else []


def _answer(folder: Path) -> Answer:
    from .servable.folder import read_description

    tasks = [entry["task"] for entry in read_description(folder)["tasks"]]
    return Answer({"folder": str(folder), "version": int(Path(folder).name), "tasks": tasks}, str(folder))


PROGRAM = Program(_TEXT, define_flags, _run, required=("packs",), errors=(ExportError,))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
