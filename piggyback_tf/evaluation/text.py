"""Errors, sizes and tables as text for people."""

from collections.abc import Sequence
from typing import Any


def format_error(errors: dict[str, Any] | None, name: str = "top1_error") -> str:
    """Returns `"2.50 [1.71, 3.64]"` for an error and its interval, `"-"` if it was not measured."""
    if not errors or name not in errors:
        return "-"
    text = f"{errors[name]:.2f}"
    if f"{name}_low" in errors and f"{name}_high" in errors:
        text += f" [{errors[f'{name}_low']:.2f}, {errors[f'{name}_high']:.2f}]"
    return text


def format_bytes(count: int | None) -> str:
    """Returns a size for a person: `"812 bytes"`, `"31.4 kB"`, `"17.2 MB"`; powers of 1000."""
    if count is None:
        return "-"
    if count < 1000:
        return f"{count} bytes"
    size, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        # Rounded first, so that 999,999 bytes are 1.0 MB and not 1000.0 kB.
        if round(size, 1) < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.1f} {unit}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a Markdown table.

    Args:
        header: The columns' names.
        rows: The cells.
        left: How many columns, from the first, are aligned to the left; the others hold numbers.
    """
    table = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    # Filled up with blanks, so that the table can be read in a terminal too.
    widths = [max(3, *map(len, column)) for column in zip(*table, strict=True)]
    lines = [[*map(str.ljust, row[:left], widths), *map(str.rjust, row[left:], widths[left:])] for row in table]
    lines.insert(1, [*("-" * w for w in widths[:left]), *("-" * (w - 1) + ":" for w in widths[left:])])
    return [f"| {' | '.join(line)} |" for line in lines]
