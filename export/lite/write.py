"""Writes the export of any design."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import BaseSpec, TaskPack

from ..errors import ExportError
from .options import LiteOptions
from .patch import export_patch

# Where the designs are that take masks as inputs, to be imported when they are asked for.
_INPUT_DESIGNS = {
    "switch": (".switch", "export_switch"),
    "input": (".stateless", "export_stateless"),
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
        importlib.import_module(".plain", __package__).export_plain(backbone, list(packs), Path(output), options)
        return Path(output)
    check_input_design(options)
    module, function = _INPUT_DESIGNS[options.design]
    getattr(importlib.import_module(module, __package__), function)(
        backbone,
        load_packs(packs, backbone),
        Path(output),
        max_classes=options.max_classes or None,
        float16=options.quantize == "float16",
    )
    return Path(output)


def check_input_design(options: LiteOptions) -> None:
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


def load_packs(packs: Sequence[TaskPack | str | os.PathLike], backbone: Backbone) -> list[TaskPack]:
    """Returns packs, read from their files or URLs where they are not given, and checked against the base."""
    spec = BaseSpec.of(backbone)
    return [pack if isinstance(pack, TaskPack) else TaskPack.load(pack, spec) for pack in packs]
