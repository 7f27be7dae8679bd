"""The paper's figures beside one's own: a column behind each for which there are some."""

import dataclasses
from collections.abc import Mapping

from piggyback_tf.evaluation.tables.cells import Cell, Table

HEADING = "paper"


def with_figures(table: Table, figures: Mapping[tuple[tuple[str, ...], str], str]) -> Table:
    """Returns a table with the figures of somebody else behind the columns that have some.

    Args:
        table: One's own.
        figures: By what names the row, its left cells, and by how the title of the column begins.
    """
    header: list[str] = list(table.header[: table.left])
    columns: list[list[Cell]] = [[row[place] for row in table.rows] for place in range(table.left)]
    for place in range(table.left, len(table.header)):
        title = table.header[place]
        header.append(title)
        columns.append([row[place] for row in table.rows])
        own = {labels: figure for (labels, begin), figure in figures.items() if title.startswith(begin)}
        beside: list[Cell] = [own.get(tuple(map(str, row[: table.left]))) for row in table.rows]
        if any(beside):
            header.append(HEADING)
            columns.append(beside)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return dataclasses.replace(table, header=header, rows=rows)
