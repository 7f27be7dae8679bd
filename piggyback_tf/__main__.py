"""What can be done with task packs and backbones: python -m piggyback_tf COMMAND

Arguments, packs and data specs are checked before TensorFlow is loaded, which takes seconds; `inspect`, `compare`,
`convert`, `push`, `pull` and `table` never load it.
"""

import argparse
import os
import sys

from piggyback_tf.commands import (
    backbones,
    compare,
    convert,
    evaluate,
    inspect,
    merge,
    predict,
    pull,
    push,
    table,
    verify,
)
from piggyback_tf.commands.common import PROGRAM, UsageError, complain
from piggyback_tf.packs import PackError
from piggyback_tf.version import __version__


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name; that of the process if None.

    Returns:
        The exit status: 0, or 2 if something that the caller gave is wrong.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Class and file names may hold what the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (UsageError, PackError) as error:
        message = str(error)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has seen enough; Python shall not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message = f"{error.filename!r}: {error.strerror}." if error.filename and error.strerror else str(error)
    complain(options.command, message)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Work with the packs of trained tasks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"piggyback_tf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (evaluate, predict, inspect, compare, verify, convert, merge, push, pull, table, backbones):
        command.add_command(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
