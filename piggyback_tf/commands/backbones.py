"""backbones: the networks that there are."""

import argparse
from typing import Any

from piggyback_tf.commands.answers import Answer, UsageError


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser("backbones", help="list the networks that --backbone takes", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as 'resnet*'; default: all")
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.backbones.registry import get_entry, list_backbones

    names = list_backbones(options.pattern)
    if not names:
        raise UsageError(f"No backbone matches {options.pattern!r}. All: {', '.join(list_backbones())}.")
    entries = {name: get_entry(name) for name in names}
    value = [
        {
            "name": name,
            "weights": entry.weights,
            "image_size": entry.image_size,
            "min_size": entry.min_size,
            "max_size": entry.max_size,
            "preprocessing": entry.preprocessing,
        }
        for name, entry in entries.items()
    ]
    return Answer(value, "\n".join(names))
