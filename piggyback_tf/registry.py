"""Registries: a name stands for one thing, and a wrong name is answered with the right ones."""

import difflib
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable, ItemsView, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def unknown_name_message(kind: str, name: str, valid: list[str], limit: int = 40) -> str:
    """Returns the sentence that answers a name which does not exist.

    Args:
        kind: What the name should have been, for example `"method"`.
        name: The name that was asked for.
        valid: Every name that exists.
        limit: Up to this many names are listed in full; of longer lists only the close ones.

    Returns:
        One line that names the close matches and, if there are not too many, all valid names.
    """
    message = f"Unknown {kind} {name!r}.{did_you_mean(name, valid)}"
    if len(valid) <= limit:
        message += f" Valid: {', '.join(sorted(valid)) or '(none)'}."
    return message


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """Returns a question, after a space, that names what is close to a name which does not exist; or `""`."""
    close = difflib.get_close_matches(name, valid, n=5, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, close))}?" if close else ""


def import_modules(package: str, path: list[str]) -> None:
    """Imports every module directly in a package, so that files which register something are found by being there.

    Args:
        package: The package's name.
        path: Its `__path__`.
    """
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")


class Registry(Generic[T]):
    """Maps names to objects of one kind; names are registered once.

    Args:
        kind: What the registry holds, in the singular, for error messages.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that files its argument under `name`.

        Raises:
            ValueError: If `name` is taken.
        """

        def decorator(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"A {self.kind} named {name!r} is registered already.")
            self._entries[name] = entry
            return entry

        return decorator

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ValueError(unknown_name_message(self.kind, name, list(self._entries)))
        return self._entries[name]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def items(self) -> ItemsView[str, T]:
        """Returns the names and what they stand for, in the order in which they were registered."""
        return self._entries.items()

    def names(self, pattern: str = "*") -> list[str]:
        """Returns the registered names that match a shell pattern, sorted."""
        return sorted(fnmatch.filter(self._entries, pattern))
