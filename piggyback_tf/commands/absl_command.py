"""Commands with flags of absl, `train` and the exports: what is wrong with a line is a sentence, and how they answer.

All other commands have arguments of argparse, and `argparse_command.py` words what is wrong with those.
"""

import dataclasses
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import flags

from piggyback_tf.commands.answers import JSON_HELP, WRONG, Answer, UsageError, conclude, put
from piggyback_tf.flags import HEADINGS, MORE, define
from piggyback_tf.quiet import open_streams, plain_log

_HELP = {"help": "List the flags that matter.", "helpshort": "The same.", "helpfull": "List all flags."}
_WIDEST = 120


@dataclasses.dataclass(frozen=True)
class Program:
    """A command with flags.

    Attributes:
        text: What it does, and examples of how it is called, in which `{call}` stands for the call without arguments.
        define: Defines its flags.
        run: Does what the flags say; gets the arguments that are none, and returns the answer.
        required: The flags that must be given.
        arguments: What its arguments are that are no flags, all of which must be given.
        errors: What it raises beside `UsageError`, `ValueError`, `OSError` and errors of flags if something that the
            caller gave is wrong.
        interrupted: What a caller is told who ended it with Ctrl-C.
    """

    text: str
    define: Callable[[], None]
    run: Callable[[list[str]], Answer]
    required: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    errors: tuple[type[Exception], ...] = ()
    interrupted: str = "interrupted."

    def __call__(self, arguments: Sequence[str], name: str) -> NoReturn:
        """Runs the program and ends the process, with a status by the rule in docs/commands.md.

        Args:
            arguments: The command line without the program's name.
            name: What the program was called as: `piggyback train`, `train.py`, or the name of a module.
        """
        sys.exit(self.main(arguments, name))

    def main(self, arguments: Sequence[str], name: str) -> int:
        """Runs the program and returns the exit status; see `__call__`."""
        open_streams()
        plain_log()
        self.define()
        define(flags.DEFINE_bool, "json", False, f"{JSON_HELP[0].upper()}{JSON_HELP[1:]}.", "Answer")
        listing = _Listing(self, _call(name))
        _define_help(listing)
        if not arguments and (self.required or self.arguments):
            print(listing.least(), file=sys.stderr)
            return WRONG

        def run() -> Answer:
            try:
                rest = flags.FLAGS([name, *arguments])[1:]
                self._check(rest)
                return self.run(rest)
            except flags.Error as error:
                raise UsageError(f"{_sentence(error)} ({_call(name)} --help)") from error

        # Flags that cannot be read do not say whether this one was given.
        as_json = {"--json": True, "--json=true": True, "--nojson": False}
        return conclude(
            run,
            name,
            as_json=next((as_json[each] for each in reversed(arguments) if each in as_json), False),
            errors=(ValueError, *self.errors),
            interrupted=self.interrupted,
        )

    def _check(self, rest: Sequence[str]) -> None:
        """Refuses a command line on which something is missing or superfluous."""
        if missing := [flag for flag in self.required if flags.FLAGS[flag].value in (None, "", [])]:
            raise flags.IllegalFlagValueError(
                " ".join(f"--{flag} is missing: {_first_sentence(flags.FLAGS[flag].help)}" for flag in missing)
            )
        if surplus := " ".join(rest[len(self.arguments) :]):
            raise flags.IllegalFlagValueError(f"Unexpected arguments: {surplus}. All settings are flags: --name=value.")
        if absent := self.arguments[len(rest) :]:
            raise flags.IllegalFlagValueError(f"{' '.join(absent)} is missing: give it after the command's name.")


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The help of a program: its flags under the headings that `HEADINGS` has."""

    program: Program
    call: str

    def least(self) -> str:
        """Returns what a caller without arguments is told: the flags under the first heading."""
        heading, names = next(iter(HEADINGS.items()))
        return "\n".join([self._text(), "", *self._group(heading, names), "", f"All flags: {self.call} --help"])

    def short(self) -> str:
        """Returns all flags but those of single methods, the essentials first."""
        lines = [self._text()]
        for heading, names in HEADINGS.items():
            lines += ["", *self._group(heading, names)] if heading != MORE else []
        return "\n".join([*lines, "", f"{MORE}: {self.call} --helpfull"] if MORE in HEADINGS else lines)

    def full(self) -> str:
        """Returns all flags, those of absl and of other libraries too."""
        shown = {*_HELP, *(name for names in HEADINGS.values() for name in names)}
        others = {
            module: [flag.name for flag in found if flag.name not in shown]
            for module, found in sorted(flags.FLAGS.flags_by_module_dict().items())
        }
        lines = [self._text()]
        for heading, names in (*HEADINGS.items(), *others.items()):
            lines += ["", *self._group(heading, names)] if names else []
        return "\n".join(lines)

    def _text(self) -> str:
        return self.program.text.replace("{call}", self.call).strip()

    def _group(self, heading: str, names: Sequence[str]) -> list[str]:
        width = min(_WIDEST, shutil.get_terminal_size().columns) - 1
        lines = [f"{heading}:"]
        for name in names:
            flag = flags.FLAGS[name]
            shown = f"--[no]{name}" if flag.boolean else f"--{name}"
            text = f"{shown}: {flag.help}"
            # A long value, such as a path, must stay one word that can be copied.
            lines += textwrap.wrap(
                text,
                width,
                initial_indent="  ",
                subsequent_indent="    ",
                break_long_words=False,
                break_on_hyphens=False,
            )
        return lines


class _HelpFlag(flags.BooleanFlag):
    """A flag that prints and ends the process as soon as it is read, whatever else is wrong with the command line."""

    def __init__(self, name: str, help: str, text: Callable[[], str]):
        super().__init__(name, False, help, allow_override=True)
        self._text = text

    def parse(self, argument: Any) -> None:
        if self._parse(argument):
            sys.exit(put(self._text()))


def _define_help(listing: _Listing) -> None:
    texts = {"help": listing.short, "helpshort": listing.short, "helpfull": listing.full}
    for name, help in _HELP.items():
        flags.DEFINE_flag(_HelpFlag(name, help, texts[name]))


def _call(name: str) -> str:
    """Returns how a program is called that is known by a name."""
    if name.endswith(".py"):
        return f"python {name}"
    return f"python -m {name}" if "." in name and " " not in name else name


def _sentence(error: flags.Error) -> str:
    """Returns what absl says of a wrong command line, as a sentence of ours."""
    text = str(error).strip()
    text = re.sub(r"^flag --(\w+)=(.*?): ", r"--\1=\2: ", text, flags=re.DOTALL)
    text = re.sub(r"invalid literal for int\(\) with base \d+: (.*)$", r"this must be an integer, not \1", text)
    text = re.sub(r"could not convert string to float: (.*)$", r"this must be a number, not \1", text)
    text = re.sub(r"\('Non-boolean argument to boolean flag', (.*)\)$", r"this must be true or false, not \1", text)
    text = re.sub(r"^ERROR:: Unable to open flagfile: \[Errno \d+\] (.*): ('.*')$", r"--flagfile=\2: \1", text)
    text = re.sub(r"Unknown command line flag '([^']*)'", r"There is no flag --\1", text)
    text = re.sub(
        r"Did you mean: (.*?) \?$", lambda found: f"Did you mean --{', --'.join(found[1].split(', '))}?", text
    )
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."
