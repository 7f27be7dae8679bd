"""Commands with arguments of argparse, all but `train` and the exports: what is wrong with a line is a sentence.

`absl_command.py` does the same for those with flags.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from piggyback_tf.commands.answers import put
from piggyback_tf.registry import unknown_name_message


class CommandLineError(Exception):
    """A command line that cannot be read.

    Args:
        program: The command that it was for.
        message: Why, in a sentence.
    """

    def __init__(self, program: str, message: str):
        super().__init__(message)
        self.program = program


class Parser(argparse.ArgumentParser):
    """Reads a command line; raises `CommandLineError` where argparse ends the process."""

    def parse_args(  # type: ignore[override]  # The caller says what the arguments are.
        self, args: Sequence[str], namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Returns the arguments.

        Raises:
            CommandLineError: If the command line cannot be read.
        """
        options, surplus = self.parse_known_args(args, namespace)
        if surplus:
            # What a command does not know, argparse leaves to the whole program, which does not know the command.
            (commands,) = (action for action in self._actions if isinstance(action, argparse._SubParsersAction))
            commands.choices[options.command].refuse(surplus)
        return options

    def refuse(self, surplus: Sequence[str]) -> NoReturn:
        """Raises a `CommandLineError` for arguments that there are not."""
        name = surplus[0].partition("=")[0]
        if not name.startswith("-"):
            self.error(f"there is no place for the argument {surplus[0]!r}")
        close = difflib.get_close_matches(name, list(self._option_string_actions))
        self.error(f"there is no {name}" + (f". Did you mean {' or '.join(close)}?" if close else ""))

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Ends the process after help or version; argparse calls it."""
        if message:
            print(message, end="", file=sys.stderr)
        sys.exit(put("", status))

    def error(self, message: str) -> NoReturn:
        """Raises a `CommandLineError`; argparse calls it."""
        if found := re.fullmatch(r"argument ([A-Z]+): invalid choice: '(.*?)' \(choose from (.*)\)", message):
            message = unknown_name_message(found[1].lower(), found[2], re.findall(r"[\w.]+", found[3]))
        sentence = message[0].upper() + message[1:] + ("" if message.endswith((".", "?", "!")) else ".")
        raise CommandLineError(self.prog, f"{sentence} ({self.prog} --help)")
