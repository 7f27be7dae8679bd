"""HTML and SVG that is safe by its making: every text is escaped, but for what was made here."""

import html
from typing import Any

from piggyback_tf.foreign_text import escaped

# Elements that have no end.
_EMPTY = ("meta", "img", "link", "br")


class Markup(str):
    """A text that is HTML already."""


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """Returns an element.

    Args:
        name: Its name.
        *children: What is in it: `Markup` as it is, lists of children one after another, None for nothing, and texts
            and numbers escaped.
        **attributes: Its attributes; `_` in a name stands for `-`, and one at the end is left out, as in `class_`. None
            and False leave the attribute out, and True gives it no value.
    """
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            parts.append(f'{key}="{_text(value)}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in _EMPTY else f"{start}{joined(*children)}</{name}>")


def joined(*children: Any) -> Markup:
    """Returns children one after another, as `element` has them."""
    return Markup("".join(_child(child) for child in children))


def _child(child: Any) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return joined(*child)
    return _text(child)


def _text(value: Any) -> str:
    # What cannot be printed, such as half of a surrogate pair or a change of direction, is no text for a page either.
    return html.escape(escaped(str(value)), quote=True)


def table(caption: Any, header: list[Any], rows: list[list[Any]], *, left: int = 1, name: str = "") -> Markup:
    """Returns a table with a caption, in a part of the page that scrolls by itself where it is too wide.

    Args:
        caption: What the table shows.
        header: The columns.
        rows: The cells; the first of each row is its heading. A cell may be a whole `<td>` of `element`.
        left: How many columns, from the first, hold texts and not numbers.
        name: What readers of the screen call the scrolling part; the caption by default.
    """
    head = [element("th", cell, scope="col", class_=None if place < left else "n") for place, cell in enumerate(header)]
    body = [
        element(
            "tr",
            [
                element("th", cell, scope="row")
                if place == 0
                else cell
                if isinstance(cell, Markup) and cell.startswith("<td")
                else element("td", cell, class_=None if place < left else "n")
                for place, cell in enumerate(row)
            ],
        )
        for row in rows
    ]
    made = element("table", element("caption", caption), element("thead", element("tr", head)), element("tbody", body))
    return element("div", made, class_="wide", role="region", tabindex="0", aria_label=name or caption)
