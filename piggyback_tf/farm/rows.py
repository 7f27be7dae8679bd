"""The table of a farm: a CSV file with a row for each task, whose columns are flags of `train`."""

import csv
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path

from piggyback_tf.files import same_look
from piggyback_tf.packs import PackError, check_task_name
from piggyback_tf.registry import did_you_mean

REQUIRED = ("task", "data")


class FarmError(Exception):
    """A table, a folder or a row that cannot be worked on."""


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """A task that is to be learned.

    Attributes:
        task: Its name.
        line: The line of the file that it ends on, from 1.
        flags: Its flags of `train`, as `--name=value`.
    """

    task: str
    line: int
    flags: tuple[str, ...]


def read_rows(path: Path, columns: Collection[str]) -> list[TaskRow]:
    """Reads a table of tasks.

    The first line names the columns: `task`, `data`, and any other flag of `train`. An empty cell leaves a flag out.

    Args:
        path: A CSV file in UTF-8, with commas.
        columns: The flags that a column may be named after.

    Returns:
        The rows in the order of the file; at least one.

    Raises:
        FarmError: If the file cannot be read, or a column or the name of a task is wrong; the sentence says which.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(_read(csv.reader(stream, strict=True), path, columns))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FarmError(f"{str(path)!r} is no CSV file in UTF-8: {error}.") from error
    if not rows:
        raise FarmError(f"{str(path)!r} has no tasks: below its first line there is no row.")
    return rows


def _read(lines: Iterator[list[str]], path: Path, columns: Collection[str]) -> Iterator[TaskRow]:
    header = [name.strip().removeprefix("--") for name in next(lines, [])]
    if missing := [name for name in REQUIRED if name not in header]:
        raise FarmError(
            f"The first line of {str(path)!r} names no column {' and no column '.join(map(repr, missing))}. It names "
            f"the flags of `train` that rows have, with commas between them: {','.join(REQUIRED)},epochs."
        )
    if twice := {name for name in header if header.count(name) > 1}:
        raise FarmError(f"The first line of {str(path)!r} names a column more than once: {', '.join(sorted(twice))}.")
    for name in header:
        if name not in columns:
            raise FarmError(
                f"Column {name!r} of {str(path)!r} is no flag of `train`.{did_you_mean(name, sorted(columns))}"
            )
    lines_of: dict[str, int] = {}
    for number, cells in _numbered(lines):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            raise FarmError(
                f"Line {number} of {str(path)!r} has {len(cells)} cells for {len(header)} columns. A value with a "
                'comma is put in quotes: "a,b".'
            )
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}
        row = _row(values, number, path)
        if earlier := lines_of.get(same_look(row.task)):
            raise FarmError(f"Lines {earlier} and {number} of {str(path)!r} name the same task, {row.task!r}.")
        lines_of[same_look(row.task)] = number
        yield row


def _numbered(lines: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for cells in lines:
        yield lines.line_num, cells  # type: ignore[attr-defined]  # Of csv.reader.


def _row(values: dict[str, str], number: int, path: Path) -> TaskRow:
    for name in REQUIRED:
        if name not in values:
            raise FarmError(f"Line {number} of {str(path)!r} has nothing in the column {name!r}.")
    try:
        task = check_task_name(values["task"])
    except PackError as error:
        raise FarmError(f"Line {number} of {str(path)!r}: {error}") from None
    return TaskRow(task, number, tuple(f"--{name}={value}" for name, value in values.items()))
