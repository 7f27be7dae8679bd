"""Errors, sizes and tables as text for people."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from piggyback_tf.foreign_text import printable

# What errors are called, by their names in results.
ERROR_TITLES = {
    "top1_error": "top-1 error %",
    "top5_error": "top-5 error %",
    "mean_iou_error": "100 less mean IoU %",
    "mean_precision_error": "100 less mean average precision %",
    "ap_error": "100 less AP %",
}
# What else a problem measures in percent, one number or one of each class.
MEASURE_TITLES = {
    "pixel_accuracy": "pixel accuracy %",
    "iou": "IoU %",
    "average_precision": "average precision %",
    "mean_ap50": "AP50 %",
    "ap": "AP %",
    "ap50": "AP50 %",
}


def interval_kind(errors: Mapping[str, Any]) -> str:
    """Returns what the intervals of errors are."""
    if main_error(errors).startswith("top"):
        return "95 % Wilson score interval"
    return "middle 95 % of a bootstrap over images, which takes them to be independent"


def main_error(errors: Mapping[str, Any]) -> str:
    """Returns the name of the error that a task is judged by: the first one of what was measured.

    Args:
        errors: What a problem's `measured` returned, such as `{"top1_error": 2.5, "images": 200}`.

    Raises:
        KeyError: If there is no error.
    """
    # As JSON without sorted keys keeps them, but for packs, whose keys are sorted: "mean_iou_error", "top1_error".
    found = [name for name in errors if name.endswith("_error")]
    if not found:
        raise KeyError("top1_error")
    return found[0]


def format_error(errors: Mapping[str, Any] | None, name: str | None = None) -> str:
    """Returns `"2.50 [1.71, 3.64]"` for an error and its interval, `"-"` if it was not measured.

    Args:
        errors: What was measured.
        name: Which error; by default the one that the task is judged by.
    """
    if not errors or not any(key.endswith("_error") for key in errors):
        return "-"
    name = name or main_error(errors)
    if name not in errors:
        return "-"
    text = f"{errors[name]:.2f}"
    if f"{name}_low" in errors and f"{name}_high" in errors:
        text += f" [{errors[f'{name}_low']:.2f}, {errors[f'{name}_high']:.2f}]"
    return text


def format_measures(measured: Mapping[str, Any]) -> dict[str, str]:
    """Returns what was measured beside the errors as text, by its title, or by title and class.

    Args:
        measured: What a problem's `measured` returned.
    """
    told = {}
    for name, title in MEASURE_TITLES.items():
        found = measured.get(name)
        each = {f"{title} of {one}": value for one, value in found.items()} if isinstance(found, Mapping) else {}
        if name in measured and not each:
            each = {title: found}
        told |= {label: "-" if value is None else f"{value:.2f}" for label, value in each.items()}
    return told


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


def format_pairs(values: Mapping[str, object], indent: int = 0) -> list[str]:
    """Returns names and values as lines, the values below one another.

    Args:
        values: The values; their names are what stands before them.
        indent: How many blanks each line begins with.
    """
    pairs = [(printable(name), printable(value)) for name, value in values.items()]
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"{' ' * indent}{name.ljust(width)}  {value}" for name, value in pairs]


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1, end: int = 0) -> str:
    """Returns a table in plain text.

    Args:
        header: The columns' names.
        rows: The cells.
        left: How many columns, from the first, are aligned to the left; the others hold numbers.
        end: How many columns before the end of the lines are aligned to the left, too.
    """
    header, *rows = _cells(header, rows)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    places = [*range(left), *range(len(widths) - end, len(widths))]
    lines = [_aligned(line, widths, places) for line in (header, ["-" * width for width in widths], *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a Markdown table.

    Args:
        header: The columns' names.
        rows: The cells.
        left: As in `format_table`.
    """
    header, *rows = [[cell.replace("|", "\\|") for cell in line] for line in _cells(header, rows)]
    # Filled up with blanks, so that the table can be read in a terminal too.
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    below = ["-" * width if place < left else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    return [f"| {' | '.join(_aligned(line, widths, range(left)))} |" for line in (header, below, *rows)]


def _cells(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Returns all lines of a table; what a cell holds may come from a pack, and a pack from anywhere."""
    return [[printable(cell) for cell in line] for line in (header, *rows)]


def _aligned(line: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    """Returns the cells of a line filled up to the widths of their columns, to the left in those that are named."""
    return [
        cell.ljust(width) if place in left else cell.rjust(width)
        for place, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
