"""Public names that are imported when they are first used, so that importing their package does not load TensorFlow."""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str, homes: dict[str, str], module: str | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns the `__getattr__` and `__dir__` of a package or of a module (PEP 562).

    Args:
        package: The package's name.
        homes: The module, relative to the package, in which each name is defined.
        module: The name of the module that has the names; None for the package itself.
    """
    module = module or package

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[module], name, value)
        return value

    def names() -> list[str]:
        return sorted(set(vars(sys.modules[module])) | set(homes))

    return get, names
