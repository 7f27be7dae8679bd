"""Writes an export for LiteRT of the design that is chosen, and says what does not go with it."""

import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.backbones import Backbone

from ..shared.errors import ExportError
from ..shared.packs import PackSource
from .options import LiteOptions

# Where each is written, to be imported when it is asked for.
_WRITERS = {
    "patch": (".patch.write", "export_patch"),
    "switch": (".inputs.write", "export_inputs"),
    "input": (".inputs.write", "export_inputs"),
    "plain": (".plain", "export_plain"),
}


def export_litert(
    backbone: Backbone,
    packs: Sequence[PackSource],
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
    check_design(options)
    module, function = _WRITERS[options.design]
    getattr(importlib.import_module(module, __package__), function)(backbone, list(packs), Path(output), options)
    return Path(output)


def check_design(options: LiteOptions) -> None:
    """Refuses what does not go with the design.

    Raises:
        ExportError: With the first thing.
    """
    design, quantize = options.design, options.quantize
    if design in ("switch", "input"):
        if quantize in ("dynamic", "int8"):
            raise ExportError(
                f"--quantize={quantize} does not go with --design={design}: LiteRT's integer convolutions take "
                "constant filters only, and here they are computed from the mask. Use --design=patch, or "
                "--quantize=none or float16."
            )
        if options.compress or options.representative_data:
            name = "compress" if options.compress else "representative_data"
            raise ExportError(f"--{name} is for --design=patch; leave it out with --design={design}.")
    if design == "plain":
        for name, why in (("max_classes", "has the classes of its task"), ("compress", "holds no masks")):
            if getattr(options, name):
                raise ExportError(f"--{name} does not go with --design=plain, of which each model {why}; leave it out.")
    if options.representative_data and quantize != "int8":
        raise ExportError(f"--representative_data is for --quantize=int8; leave it out with --quantize={quantize}.")
