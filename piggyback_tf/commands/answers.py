"""How every command ends: what it answers, as text or as JSON, and its exit status, by one rule (docs/commands.md)."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from piggyback_tf.extras import missing_extra

DONE = 0
# Of a command that answers a question, such as `verify`: what was given is right, and the answer is no.
NO = 1
# Something that was given is wrong: an argument, a file, a setting.
WRONG = 2
# The program itself is wrong; a stack trace says where.
FAULT = 70
# A signal ended it, as shells have it: 128 + SIGINT, and 128 + SIGPIPE where nobody reads the output.
INTERRUPTED = 130
UNREAD = 141
# SIGTERM, or another machine that worked at the same is gone.
ENDED = 143

JSON_HELP = "print the answer as one JSON document, and all else on stderr; see docs/commands.md"


def program_name() -> str:
    """Returns what this program is called as: `piggyback` where it is installed and was called so."""
    return "piggyback" if Path(sys.argv[0]).stem == "piggyback" else "python -m piggyback_tf"


class UsageError(Exception):
    """Something the caller has to change; the message says what."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a command answers at its end.

    Attributes:
        value: The answer as JSON values; keys may be added in later versions.
        text: The same for a person; empty if that was printed on the way.
        status: The exit status.
    """

    value: Any
    text: str = ""
    status: int = DONE


def conclude(
    run: Callable[[], Answer],
    name: str,
    *,
    as_json: bool,
    errors: tuple[type[Exception], ...],
    interrupted: str = "interrupted.",
) -> int:
    """Runs a command, prints its answer, or says in a sentence on stderr why there is none, and returns the status.

    With `as_json`, stdout holds nothing but one JSON document: the answer, or `{"error": SENTENCE}`.

    Args:
        run: The command.
        name: What it was called as, for what is said on stderr.
        as_json: Whether the answer is printed as JSON.
        errors: What it raises if something that the caller gave is wrong, beside `UsageError` and `OSError`.
        interrupted: What a caller is told who ended it with Ctrl-C.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            answer = run()
        return put(to_json(answer.value) if as_json else answer.text, answer.status)
    except BrokenPipeError:
        return put("", UNREAD)
    except KeyboardInterrupt:
        return _interrupted(name, interrupted)
    except OSError as error:
        message = _os_sentence(error)
    except (UsageError, *errors) as error:  # type: ignore[misc]  # mypy does not see that all are exceptions.
        message = str(error)
    except ModuleNotFoundError as error:
        try:
            message = missing_extra(error)
        except ModuleNotFoundError:
            traceback.print_exc()
            return FAULT
    except Exception:  # A status of its own: Python's, 1, would be the answer no.
        traceback.print_exc()
        return FAULT
    return refuse(name, message, as_json=as_json)


def answering_interrupts(run: Callable[[], int], name: str) -> int:
    """Calls what imports a command and runs it, and returns the status; Ctrl-C may come before `conclude`, too.

    Args:
        run: Imports and runs it.
        name: What it was called as.
    """
    try:
        return run()
    except KeyboardInterrupt:
        return _interrupted(name, "interrupted.")


def _interrupted(name: str, sentence: str) -> int:
    print(f"\n{name}: {sentence}", file=sys.stderr)
    return put("", INTERRUPTED)


def refuse(name: str, message: str, *, as_json: bool) -> int:
    """Says why there is no answer, since something that was given is wrong, and returns the status for that."""
    print(f"{name}: {message}", file=sys.stderr)
    return put(to_json({"error": message}) if as_json else "", WRONG)


def put(text: str, status: int = DONE) -> int:
    """Writes the last text to stdout, with all that was printed before, and returns the status to end with.

    That is `status`, unless nobody reads the output, such as `head` that has seen enough, or it cannot be written, as
    on a full disk: an answer that did not arrive is none.
    """
    try:
        if text:
            print(text)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status = UNREAD
    except OSError as error:
        print(f"The output cannot be written: {error.strerror or error}.", file=sys.stderr)
        status = WRONG
    # Python tries again at its end, and would complain with a status of its own.
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _os_sentence(error: OSError) -> str:
    """Returns what is wrong with a file, or, where one is copied or renamed, with which of both nobody knows."""
    if not error.strerror or error.filename is None:
        return str(error)
    names = [repr(os.fspath(name)) for name in (error.filename, error.filename2) if name is not None]
    return f"{' -> '.join(names)}: {error.strerror}."


def to_json(value: Any) -> str:
    """Returns an answer as text; numbers that are not finite, which JSON does not have, are null."""
    return json.dumps(_finite(value), indent=2)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
