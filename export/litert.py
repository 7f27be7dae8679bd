"""One base and any number of tasks for a device, as LiteRT models."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import flags

from piggyback_tf.backbones import Backbone
from piggyback_tf.commands.common import UsageError
from piggyback_tf.commands.program import Program
from piggyback_tf.flags import ESSENTIALS, define, define_base_flags, define_config_flags, read_config
from piggyback_tf.packs import BaseSpec, TaskPack
from piggyback_tf.packs.find import find_packs

from .base import load_base_of
from .edge.piggyback_edge import EdgeError
from .lite.device_file import add_inputs
from .lite.folder import is_patched
from .lite.model_description import read_description
from .lite.options import LiteOptions
from .lite.patch import Added, add_tasks, export_patch
from .servable.folder import ExportError

FLAGS = flags.FLAGS
_TEXT = """One base and any number of tasks for a device, as LiteRT models.

    {call} --packs=a.task.safetensors,b.task.safetensors --output=DIR
    {call} --packs=c.task.safetensors --base=DIR/base.tflite

The first writes what `--design` says: with `patch` `base.tflite`, its manifest, a file `<task>.edge` for each task, and
a copy of the patcher for the device; with `switch` and `input` `model.tflite` and `<task>.inputs.safetensors`; with
`plain` a model `<task>.tflite` of each task alone. The second writes only the files of new tasks for a `base.tflite` or
a `model.tflite` that is already in the field. See docs/litert.md.
"""
# Where the designs are that take masks as inputs, to be imported when they are asked for.
_INPUT_DESIGNS = {
    "switch": (".lite.switch", "export_switch"),
    "input": (".lite.stateless", "export_stateless"),
}


def export_litert(
    backbone: Backbone,
    packs: Sequence[TaskPack | str | os.PathLike],
    output: str | os.PathLike,
    options: LiteOptions | None = None,
) -> Path:
    """Writes a base and tasks for LiteRT, whole or not at all.

    Args:
        backbone: The base; not changed.
        packs: Packs for this base, or their files or URLs.
        output: The export's folder, which must not be there, or be empty.
        options: What can be chosen, the design among it; `LiteOptions()` if None.

    Returns:
        The folder.

    Raises:
        PackError: If a pack is for another base, or two tasks have one name.
        ExportError: If something cannot work; the message says what and why.
        DataError: If images cannot be read or prepared.
        ValueError: If the base cannot be exported.
        OSError: If the files cannot be written.
    """
    options = options or LiteOptions()
    if options.design == "patch":
        export_patch(backbone, list(packs), Path(output), options)
        return Path(output)
    if options.design == "plain":
        _check_plain(options)
        importlib.import_module(".lite.plain", __package__).export_plain(backbone, list(packs), Path(output), options)
        return Path(output)
    _check_input_design(options)
    module, function = _INPUT_DESIGNS[options.design]
    getattr(importlib.import_module(module, __package__), function)(
        backbone,
        _load(packs, backbone),
        Path(output),
        max_classes=options.max_classes or None,
        float16=options.quantize == "float16",
    )
    return Path(output)


def _check_input_design(options: LiteOptions) -> None:
    """Refuses what does not work with masks as inputs.

    Raises:
        ExportError: With the first thing.
    """
    if options.quantize in ("dynamic", "int8"):
        raise ExportError(
            f"--quantize={options.quantize} does not go with --design={options.design}: LiteRT's integer convolutions "
            "take constant filters only, and here they are computed from the mask. Use --design=patch, or "
            "--quantize=none or float16."
        )
    if options.compress or options.representative_data:
        name = "compress" if options.compress else "representative_data"
        raise ExportError(f"--{name} is for --design=patch; leave it out with --design={options.design}.")


def _check_plain(options: LiteOptions) -> None:
    """Refuses what a model of one task alone has no use for.

    Raises:
        ExportError: With the first thing.
    """
    for name, why in (("max_classes", "has the classes of its task"), ("compress", "holds no masks")):
        if getattr(options, name):
            raise ExportError(f"--{name} does not go with --design=plain, of which each model {why}; leave it out.")
    if options.representative_data and options.quantize != "int8":
        raise ExportError(
            f"--representative_data is for --quantize=int8; leave it out with --quantize={options.quantize}."
        )


def define_flags() -> None:
    """Defines the flags of the command."""
    text = flags.DEFINE_string
    define(flags.DEFINE_list, "packs", None, "Packs: files, URLs, folders or glob patterns.", ESSENTIALS)
    output = "Folder of the export; with --base that of the new file, by default the base's."
    define(text, "output", None, output, ESSENTIALS)
    base = "What the tasks are added to: base.tflite with its manifests beside it, or model.tflite."
    define(text, "base", None, base, ESSENTIALS)
    define_config_flags(LiteOptions)
    define_base_flags()


def run() -> list[str]:
    """Does what the flags say and returns the lines to print."""
    files = find_packs(FLAGS.packs)
    if FLAGS.base is not None:
        return _run_base(files)
    if FLAGS.output is None:
        raise UsageError("--output is missing: the folder of the export.")
    options = read_config(LiteOptions)
    backbone = load_base_of(TaskPack.load(files[0]), FLAGS.backbone, FLAGS.weights)
    return [str(export_litert(backbone, files, FLAGS.output, options))]


def _run_base(files: Sequence[str]) -> list[str]:
    """Adds tasks to a base; what decides the base's form is not to be given again."""
    for name in ("design", "quantize", "max_classes"):
        if FLAGS[name].present:
            raise UsageError(f"--{name} is decided by the base; leave it out with --base.")
    if not Path(FLAGS.base).is_file():
        raise UsageError(f"--base={FLAGS.base}: there is no such file.")
    options = read_config(LiteOptions)
    backbone = load_base_of(TaskPack.load(files[0]), FLAGS.backbone, FLAGS.weights)
    output = None if FLAGS.output is None else Path(FLAGS.output)
    packs = _load(files, backbone)
    if not is_patched(Path(FLAGS.base)):
        return _add_inputs(backbone, packs, options, output)
    added = add_tasks(backbone, packs, Path(FLAGS.base), output, options)
    return [line for task in added for line in _describe(task, options)]


def _add_inputs(backbone: Backbone, packs: Sequence[TaskPack], options: LiteOptions, output: Path | None) -> list[str]:
    """Adds tasks to a model that takes masks as inputs."""
    design, model = read_description(FLAGS.base)["design"], Path(FLAGS.base)
    if design == "plain":
        raise UsageError(
            f"--base={FLAGS.base}: this is a model of one task alone; export a new task by itself, with --design=plain "
            "and --output."
        )
    _check_input_design(dataclasses.replace(options, design=design))
    return [str(path) for path in add_inputs(backbone, packs, model, output)]


def _load(packs: Sequence[TaskPack | str | os.PathLike], backbone: Backbone) -> list[TaskPack]:
    spec = BaseSpec.of(backbone)
    return [pack if isinstance(pack, TaskPack) else TaskPack.load(pack, spec) for pack in packs]


def _describe(added: Added, options: LiteOptions) -> list[str]:
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


def _run(arguments: list[str]) -> None:
    del arguments
    print("\n".join(run()))


PROGRAM = Program(_TEXT, define_flags, _run, required=("packs",), errors=(ExportError, EdgeError))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
