"""Tables as Markdown, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Mapping

from piggyback_tf.evaluation.tables.cells import Cell, Number, Table
from piggyback_tf.evaluation.text import markdown_table
from piggyback_tf.foreign_text import printable

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
}


def to_markdown(table: Table) -> str:
    """Returns a table as Markdown that can be read in a terminal too, its notes below."""
    rows = [[_text(cell) for cell in row] for row in table.rows]
    lines = [f"{_text(table.caption)}:", "", *markdown_table([*map(_text, table.header)], rows, table.left)]
    return "\n".join([*lines, *(["", *(f"- {_text(note)}" for note in table.notes)] if table.notes else [])]) + "\n"


def to_csv(table: Table) -> str:
    """Returns a table as CSV: sizes in bytes; standard deviations and numbers in brackets have columns of their own."""
    columns = list(zip(*table.rows, strict=True))
    header, filled = [], []
    for title, cells in zip(table.header, columns, strict=True):
        for part, value in _parts(cells).items():
            header.append(title + part)
            filled.append([value(cell) for cell in cells])
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(zip(*filled, strict=True))
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """Returns a table as a LaTeX `table` environment that needs no package, its notes below."""
    rows = [" & ".join(_escape(_text(cell)) for cell in row) for row in (table.header, *table.rows)]
    # Behind the end of a row a star or a bracket would be an argument of that.
    lines = ["{}" * row.startswith(("[", "*")) + row + r" \\" for row in rows]
    columns = "l" * table.left + "r" * (len(table.header) - table.left)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escape(_text(table.caption))}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            *(rf"\par {_escape(_text(note))}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    )


# By name on the command line: the ending of a file and what writes it.
FORMATS: Mapping[str, tuple[str, Callable[[Table], str]]] = {
    "markdown": (".md", to_markdown),
    "csv": (".csv", to_csv),
    "latex": (".tex", to_latex),
}


def _parts(cells: tuple[Cell, ...]) -> dict[str, Callable[[Cell], object]]:
    """Returns the columns that CSV makes of one: what is added to its title, and the value of a cell there."""

    def second(cell: Cell) -> Number | None:
        return cell.second if isinstance(cell, Number) else None

    def value(cell: Cell) -> object:
        return cell.plain() if isinstance(cell, Number) else cell or ""

    def spread(cell: Cell) -> object:
        return round(cell.spread, 6) if isinstance(cell, Number) and cell.spread is not None else ""

    parts: dict[str, Callable[[Cell], object]] = {
        "": value,
        " std": spread,
        " top-5": lambda cell: value(second(cell)),
        " top-5 std": lambda cell: spread(second(cell)),
    }
    return {part: find for part, find in parts.items() if part == "" or any(find(cell) != "" for cell in cells)}


def _text(cell: Cell) -> str:
    return "" if cell is None else printable(cell)


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
