"""One base and any number of tasks for a device, as LiteRT models."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import load_base
from piggyback_tf.extras import need
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
from piggyback_tf.lazy import lazy_names
from piggyback_tf.packs.find import find_packs
from piggyback_tf.quiet import filtered_stderr

from .edge.piggyback_edge import EdgeError
from .lite.folder import check_free
from .lite.options import LiteOptions
from .shared.errors import ExportError
from .shared.packs import find_base

if TYPE_CHECKING:
    from .lite.patch.write import Added
    from .lite.write import export_litert

__all__ = ["export_litert"]

# A command line is checked before TensorFlow is loaded.
__getattr__, __dir__ = lazy_names(__package__, {"export_litert": "lite.write"}, __name__)

FLAGS = flags.FLAGS
_TEXT = """One base and any number of tasks for a device, as LiteRT models.

    {call} --packs=a.task.safetensors,b.task.safetensors --output=DIR
    {call} --packs=c.task.safetensors --base=DIR/base.tflite

The first command writes different files for each `--design`:
- `patch`: `base.tflite`, its manifest, a file `<task>.edge` for each task, and the patcher for the device.
- `switch` and `input`: `model.tflite`, and a file `<task>.inputs.safetensors` for each task.
- `plain`: an ordinary model `<task>.tflite` for each task.

The second command writes only the files of new tasks, for a `base.tflite` or `model.tflite` that devices already have.
See docs/litert.md.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    text = flags.DEFINE_string
    define_packs_flag()
    output = "Folder of the export; with --base the folder of the new files, by default the base's."
    define(text, "output", None, output, ESSENTIALS)
    base = "The model to add tasks to: base.tflite with its manifests beside it, or model.tflite."
    define(text, "base", None, base, ESSENTIALS)
    define_config_flags(LiteOptions)
    define_base_flags()


def _run(arguments: list[str]) -> Answer:
    """Does what the flags say; the answer is what was written."""
    del arguments
    need("ai_edge_litert")
    files, output, model = find_packs(FLAGS.packs), given_path("output"), given_path("base")
    if model is not None:
        return _run_base(files, model, output)
    if output is None:
        raise UsageError("--output is missing: the folder of the export.")
    check_free(output)
    check_writable(output.parent)  # Loading the base takes seconds.
    options, base = read_config(LiteOptions), find_base(files, FLAGS.backbone, FLAGS.weights)
    backbone = load_base(*base)
    from .lite.runtime import load_litert
    from .lite.write import export_litert

    load_litert()
    with filtered_stderr():  # The conversion to integers tells its settings.
        folder = export_litert(backbone, files, output, options)
    written = sorted(str(path) for path in Path(folder).rglob("*") if path.is_file())
    return Answer({"folder": str(folder), "files": written}, str(folder))


def _run_base(files: Sequence[str], model: Path, output: Path | None) -> Answer:
    """Adds tasks to a base; what decides the base's form is not to be given again."""
    for name in ("design", "quantize", "max_classes"):
        if FLAGS[name].present:
            raise UsageError(f"--{name} is decided by the base; leave it out with --base.")
    if not model.is_file():
        raise UsageError(f"--base={model}: there is no such file.")
    from .lite.folder import is_patched
    from .lite.image_size import image_size_of

    options, base = read_config(LiteOptions), find_base(files, FLAGS.backbone, FLAGS.weights)
    backbone = load_base(*base, image_size_of(model))
    from .lite.inputs.write import add_inputs
    from .lite.model_description import read_model_description
    from .lite.patch.write import add_patches
    from .lite.runtime import load_litert
    from .lite.write import check_design

    load_litert()
    if is_patched(model):
        added = add_patches(backbone, files, model, output, options)
        text = "\n".join(line for task in added for line in _describe(task, options))
        ranges = [None if task.saturation is None else list(map(dataclasses.asdict, task.saturation)) for task in added]
        value = [{"file": str(task.path), "saturation": found} for task, found in zip(added, ranges, strict=True)]
        return Answer({"files": [each["file"] for each in value], "tasks": value}, text)
    if (design := read_model_description(model)["design"]) == "plain":
        raise UsageError(
            f"--base={model}: this is a model of one task alone; export a new task by itself, with --design=plain "
            "and --output."
        )
    # A model that takes masks as inputs.
    check_design(dataclasses.replace(options, design=design))
    written = [str(path) for path in add_inputs(backbone, files, model, output)]
    return Answer({"files": written}, "\n".join(written))


def _describe(added: "Added", options: LiteOptions) -> list[str]:
    """Returns the file of a task, and what is to be said about the ranges of an int8 base."""
    lines = [str(added.path)]
    if added.saturation is None:
        if added.quantize == "int8":
            lines.append("  ranges not checked: without --representative_data it is not known what would saturate")
        return lines
    if not added.saturation:
        return [*lines, f"  no activation leaves the base's ranges on {options.representative_images} images or fewer"]
    for found in added.saturation:
        lines.append(
            f"  SATURATES: {found.tensor.partition(';')[0]} reaches [{found.reaches[0]:.3g}, {found.reaches[1]:.3g}], "
            f"and the base holds [{found.limits[0]:.3g}, {found.limits[1]:.3g}]"
        )
    return lines


PROGRAM = Program(_TEXT, define_flags, _run, required=("packs",), errors=(ExportError, EdgeError))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
