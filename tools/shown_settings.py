"""Settings as a reader of the API pages needs them; an extension of griffe (mkdocs.yml).

A setting is written `epochs: int = option(10, "Passes over ...")`. Its default is 10, and the text is what it is.
"""

import dataclasses
import importlib
from typing import Any

import griffe


class ShownSettings(griffe.Extension):
    """Shows default and help text of a setting where the source has a call of `option`."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Gives an attribute that is a call of `option` its default as value, and its help text as docstring."""
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "option":
            config = getattr(importlib.import_module(attr.module.path), attr.parent.name)
            field = next(field for field in dataclasses.fields(config) if field.name == attr.name)
            attr.value = repr(field.default)
            attr.docstring = griffe.Docstring(field.metadata["help"], parent=attr)
