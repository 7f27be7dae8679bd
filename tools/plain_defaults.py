"""Defaults of settings as a reader of the API pages needs them; an extension of griffe (mkdocs.yml).

A setting is written `epochs: int = option(10, "Passes over ...")`, and its default is 10.
"""

import importlib
from typing import Any

import griffe


class PlainDefaults(griffe.Extension):
    """Shows values of settings where the source has a call of `option`, or the name of a constant."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Replaces the value of an attribute that is a call of `option` by its first argument."""
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "option":
            default = value.arguments[0]
            if isinstance(default, griffe.ExprName):
                module = importlib.import_module(attr.module.path)
                default = repr(getattr(module, default.name))
            attr.value = default
