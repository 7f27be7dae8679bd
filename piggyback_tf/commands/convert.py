"""convert: a pack in another coding, or of an older format in the present one, without TensorFlow."""

import argparse
from typing import Any

from piggyback_tf.commands.answers import Answer
from piggyback_tf.commands.common import PACK_HELP, add_output, check_new_output, load_pack
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.codec import CODECS
from piggyback_tf.remote import write_bytes


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "convert",
        help="write a pack in another coding, or from an older format; needs no TensorFlow",
        description="Reads a pack in this or an older format, and writes it in the newest format that it needs. No "
        "codec changes the masks.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    add_output(command, "the file to write, or a URL", required=True)
    command.add_argument(
        "--codec",
        choices=CODECS,
        default="best",
        help="coding of the masks. best: the smallest for each layer; static: one probability per layer; bits: one bit "
        "per weight (two if ternary); default: best",
    )
    command.add_argument(
        "--float16", action="store_true", help="round everything but the masks to float16, which halves its size"
    )
    return command


def _run(options: argparse.Namespace) -> Answer:
    check_new_output(options)
    pack, before = load_pack(options.pack)
    converted = pack.astype("float16") if options.float16 else pack
    after = converted.to_bytes(options.codec)
    # The checksum is that of the pack: nothing is written that would not come back as it was.
    TaskPack.from_bytes(after, options.output)
    write_bytes(options.output, after)
    text = (
        f"{options.pack}: {len(before):,} bytes, format version {pack.format_version}, {pack.dtype}\n"
        f"{options.output}: {len(after):,} bytes, format version {converted.saved_version}, {converted.dtype}, codec "
        f"{options.codec} ({100 * len(after) / len(before):.1f} %)"
    )
    if converted.dtype != pack.dtype and pack.errors:
        text += "\nThe errors in the pack are those that were measured before rounding."
    value = {
        "from": {
            "file": options.pack,
            "bytes": len(before),
            "format_version": pack.format_version,
            "dtype": pack.dtype,
        },
        "to": {
            "file": options.output,
            "bytes": len(after),
            "format_version": converted.saved_version,
            "dtype": converted.dtype,
            "codec": options.codec,
        },
    }
    return Answer(value, text)
