"""Runs the command that a line names.

Arguments, packs and data specs are checked before TensorFlow is loaded, which takes seconds; `inspect`, `compare`,
`convert`, `push`, `pull`, `table`, `report`, `reproduce` and `cache` never load it. (`report` does for images of
`tfds:`, and the trainings of `reproduce` are processes of their own.)
"""

import importlib
import os
import sys

from piggyback_tf.commands import (
    backbones,
    cache,
    compare,
    convert,
    evaluate,
    inspect,
    merge,
    predict,
    pull,
    push,
    report,
    reproduce,
    submit,
    table,
    verify,
)
from piggyback_tf.commands.answers import JSON_HELP, WRONG, conclude, program_name, refuse
from piggyback_tf.commands.argparse_command import CommandLineError, Parser
from piggyback_tf.extras import missing_extra
from piggyback_tf.packs import PackError
from piggyback_tf.quiet import open_streams, plain_log
from piggyback_tf.version import __version__

# Commands with flags, each the `PROGRAM` of a module.
_WITH_FLAGS = {
    "train": "learn a task, or several one after another, on a frozen network",
    "farm": "learn the tasks of a table, several at a time",
}
# The kinds of `export`, each the `PROGRAM` of a module.
_EXPORTS = {
    "saved_model": "one SavedModel of a base and tasks, for TensorFlow Serving",
    "serving": "configuration, warm-up and client of a server",
    "litert": "a base and tasks for a device",
    "verify": "compare an export with the task bank",
}


def run_command(arguments: list[str]) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit status, by the rule in docs/commands.md.
    """
    open_streams()
    plain_log()
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # Class and file names may hold what the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if arguments[:1] and arguments[0] in _WITH_FLAGS:
        return _run_program(f"piggyback_tf.commands.{arguments[0]}", arguments, 1)
    if arguments[:1] == ["export"] and arguments[1:2] and arguments[1] in _EXPORTS:
        return _run_program(f"piggyback_tf.export.{arguments[1]}", arguments, 2)
    parser = _parser()
    if not arguments:
        print(parser.format_help(), end="", file=sys.stderr)
        return WRONG
    try:
        options = parser.parse_args(arguments)
    except CommandLineError as error:
        return refuse(error.program, str(error), as_json="--json" in arguments)
    name = f"{program_name()} {options.command}"
    return conclude(lambda: options.run(options), name, as_json=options.json, errors=(PackError,))


def _run_program(module: str, arguments: list[str], words: int) -> int:
    """Runs a command whose settings are flags.

    Args:
        module: Where it is. By name: exports are above this package's own folders, and no command loads another one.
        arguments: The command line.
        words: How many of the arguments name the command.
    """
    name = " ".join([program_name(), *arguments[:words]])
    try:
        program = importlib.import_module(module).PROGRAM
    except ModuleNotFoundError as error:
        return refuse(name, missing_extra(error), as_json="--json" in arguments)
    return program.main(arguments[words:], name)


def _parser() -> Parser:
    parser = Parser(
        program_name(), description="One frozen network, many tasks: train, use and export them.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"piggyback_tf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    # Listed here; `main` has run them.
    for name, does in _WITH_FLAGS.items():
        commands.add_parser(name, help=does, add_help=False)
    export = commands.add_parser("export", help="write what servers and devices run", allow_abbrev=False)
    exports = export.add_subparsers(required=True, metavar="KIND")
    for name, does in _EXPORTS.items():
        exports.add_parser(name, help=does, add_help=False)
    for command in (
        evaluate,
        predict,
        inspect,
        compare,
        verify,
        convert,
        merge,
        push,
        pull,
        table,
        report,
        reproduce,
        submit,
        backbones,
        cache,
    ):
        command.add_command(commands).add_argument("--json", action="store_true", help=JSON_HELP)
    return parser
