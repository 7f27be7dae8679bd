"""What others wrote, within sentences: names from files, values of any size, errors of libraries, lists, counts.

A file of a task, a data set or a server's answer may come from anywhere. What it holds must not send commands to a
terminal, nor fill it. Of the files that also run without this package `export/edge/piggyback_edge.py` has a copy of
`printable`, and `export/deployment/client.py` of `escaped`.
"""

import reprlib
from collections.abc import Callable, Sequence

# How much of a value from a file an error repeats.
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 120
_REPR.maxlist = 8


def printable(value: object) -> str:
    """Returns a value as a text on one line: as it is, or in quotes with escapes if it could not be printed so."""
    text = str(value)
    return text if text.isprintable() else repr(text)


def escaped(text: str) -> str:
    """Returns a text on one line without quotes: what cannot be printed is escaped, such as `\\x1b`."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def shown(value: object) -> str:
    """Returns a value as Python writes it, on one line and without its middle if it is long."""
    return _REPR.repr(value)


def short_hash(digest: str) -> str:
    """Returns the beginning of a hash, by which people tell it from others, without what could not be printed."""
    return escaped(digest[:12])


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Returns what an error from another library says on one line, cut off at `limit` characters."""
    text = escaped(" ".join(str(error).split()))
    if not text and isinstance(error, BaseException):
        return type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


def reason(error: BaseException | str, limit: int = 400) -> str:
    """Returns `one_line` without the period at its end, as a part of a sentence."""
    return one_line(error, limit).rstrip(".")


def counted(number: int, one: str, many: str = "") -> str:
    """Returns a number with what it counts: `1 image`, `1,200 images`.

    Args:
        number: The number.
        one: What a single one is called.
        many: What several are called; by default with an s.
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def duration(seconds: float) -> str:
    """Returns a time as people say it: `"0.4 s"`, `"12 s"`, `"3 min"`, `"2 h 5 min"`."""
    if seconds < 0.95:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def some(names: Sequence[str], most: int = 5, form: Callable[[str], str] = printable) -> str:
    """Returns the first names with commas between them, and how many more there are.

    Args:
        names: The names.
        most: How many are named.
        form: What makes a text of a name: `printable`, or `repr` for names in quotes.
    """
    return ", ".join(map(form, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")
