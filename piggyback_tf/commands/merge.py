"""merge: a task and its base as one plain Keras model."""

import argparse
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import (
    PACK_HELP,
    add_base_options,
    add_output,
    check_new_output,
    choose_base,
    load_bank,
    load_pack,
)
from piggyback_tf.file_names import NETWORK_SUFFIX
from piggyback_tf.foreign_text import counted
from piggyback_tf.remote import is_url, local_output


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "merge",
        help="write a task and its base as one plain Keras model",
        description="Writes a .keras file with a task's network: the base with all dropped weights set to 0, the "
        "task's batch norm and its head. Keras loads the file without this package.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    output = "the file to write (.keras), or a URL"
    add_output(command, output, required=True)
    add_base_options(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    if not options.output.endswith(NETWORK_SUFFIX):
        raise UsageError(f"--output={options.output}: the name of a Keras model must end in .keras.")
    check_new_output(options)
    pack, _ = load_pack(options.pack)
    model = load_bank(pack, choose_base(pack, options.backbone, options.weights)).to_keras(pack.task)
    with local_output(options.output) as path:
        model.save(path)
        size = path.stat().st_size
    # Keras reads few kinds of URLs.
    remote = is_url(options.output)
    copied, name = ("Copy it here and load", Path(options.output).name) if remote else ("Load", options.output)
    height, width = pack.image_shape
    images = f"[N, {height}, {width}, 3]"
    classes = counted(len(pack.class_names), "class", "classes")
    text = (
        f"{options.output}: {size:,} bytes.\n"
        f"{copied} it with keras.models.load_model({name!r}). It takes RGB images {images} in "
        f"[0, 255] and gives the probabilities of {classes}, in the pack's order."
    )
    value = {
        "file": options.output,
        "bytes": size,
        "task": pack.task,
        "image_size": pack.image_size,
        "image_shape": list(pack.image_shape),
        "classes": pack.class_names,
    }
    return Answer(value, text)
