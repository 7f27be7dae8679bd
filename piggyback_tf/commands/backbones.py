"""backbones: the networks that there are."""

import argparse
from typing import Any

from piggyback_tf.commands.common import UsageError


def add_command(commands: Any) -> None:
    """Declares the command's arguments; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser("backbones", help="list the networks that --backbone takes", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as 'resnet*'; default: all")


def _run(options: argparse.Namespace) -> int:
    from piggyback_tf.backbones import list_backbones

    names = list_backbones(options.pattern)
    if not names:
        raise UsageError(f"No backbone matches {options.pattern!r}. All: {', '.join(list_backbones())}.")
    print("\n".join(names))
    return 0
