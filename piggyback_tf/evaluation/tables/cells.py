"""Numbers and texts of a table, before they are written in any format."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from piggyback_tf.evaluation.text import format_bytes


def _signed_bytes(count: float) -> str:
    return ("-" if count < 0 else "") + format_bytes(abs(round(count)))


# How a number is written for a person.
_STYLES: dict[str, Callable[[float], str]] = {
    "percent": "{:.2f}".format,
    "ratio": "{:.2f}".format,
    "bytes": _signed_bytes,
    "count": "{:,.0f}".format,
    "seconds": "{:.0f} s".format,
}


@dataclasses.dataclass(frozen=True)
class Number:
    """A mean over seeds.

    Attributes:
        value: The mean.
        spread: Standard deviation over seeds (that of a sample); None if there is one seed, or it is not shown.
        style: One of `"percent"`, `"ratio"`, `"bytes"`, `"count"`, `"seconds"`.
        second: What stands behind it in brackets, such as a top-5 error.
    """

    value: float
    spread: float | None = None
    style: str = "percent"
    second: "Number | None" = None

    def __str__(self) -> str:
        text = _STYLES[self.style](self.value)
        if self.spread is not None:
            text += f" ± {_STYLES[self.style](self.spread)}"
        return text + (f" ({self.second})" if self.second else "")

    def plain(self) -> float | int:
        """Returns the mean for a program: bytes and counts as integers."""
        return round(self.value) if self.style in ("bytes", "count") else round(self.value, 6)


Cell = Number | str | None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, and sentences that belong below it.

    Attributes:
        name: For files.
        caption: One line.
        header: Names of the columns.
        rows: Cells, as many in each row as there are columns; None where nothing was measured.
        left: How many columns, from the first, name the row.
        notes: Sentences.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    left: int = 1
    notes: Sequence[str] = ()

    def without_empty_columns(self) -> "Table":
        """Returns the table without the columns in which nothing is; they would say nothing."""
        kept = [
            place
            for place in range(len(self.header))
            if place < self.left or any(row[place] not in (None, "") for row in self.rows)
        ]
        return dataclasses.replace(
            self,
            header=[self.header[place] for place in kept],
            rows=[[row[place] for place in kept] for row in self.rows],
        )


def mean(values: Sequence[float | None], style: str = "percent", spread: bool = True) -> Number | None:
    """Returns the mean of what seeds gave, with its standard deviation if there are several; None if one gave nothing.

    Args:
        values: A value for each seed.
        style: As in `Number`.
        spread: Whether the standard deviation is shown.
    """
    if not values or any(value is None for value in values):
        return None
    deviation = statistics.stdev(values) if spread and len(values) > 1 else None
    return Number(statistics.fmean(values), deviation, style)
