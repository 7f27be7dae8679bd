"""table: results of finished runs as tables and plots, without TensorFlow."""

import argparse
import sys
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import check_folder_above, complain
from piggyback_tf.evaluation.tables import FORMATS, LAYOUTS, Number, Table, TableError, make_table, read_runs
from piggyback_tf.evaluation.tables.cells import Cell
from piggyback_tf.extras import extra_sentence, is_installed
from piggyback_tf.files import local_path, write_atomically
from piggyback_tf.foreign_text import printable

_LAYOUTS_HELP = (
    "paper2: errors by task and method on one network, models and size; paper3: the same with joint training and top-5 "
    "errors; paper4: the same as paper2 for several networks; paper5: masks by initialisation; paper6: zeros in masks; "
    "paper7: fixed against trained batch norm; paper8: the Visual Decathlon, accuracies and score; survey: a row a "
    "method with errors, forgetting, transfer, bytes, cost"
)


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "table",
        help="print the results of runs in the layout of the paper's tables, or as a survey",
        description="Prints the results of finished runs as a table: mean and standard deviation over seeds.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder that train.py wrote, or JSON file of benchmarks/methods.py"
    )
    command.add_argument("--layout", required=True, choices=LAYOUTS, help=_LAYOUTS_HELP)
    command.add_argument(
        "--format", choices=(*FORMATS, "all"), default="markdown", help="format of the printed table; default: markdown"
    )
    command.add_argument(
        "--output", metavar="DIR", help="also write LAYOUT.md, LAYOUT.csv and LAYOUT.tex to this folder"
    )
    command.add_argument(
        "--plots",
        metavar="DIR",
        help="write plots to this folder: zeros by layer, matrices of errors, error against bytes",
    )
    return command


def _run(options: argparse.Namespace) -> Answer:
    output, plots = (_folder(options, name) for name in ("output", "plots"))
    if plots and not is_installed("matplotlib"):
        raise UsageError(f"--plots: {extra_sentence('matplotlib')}")
    try:
        records = read_runs(options.runs)
        table = make_table(options.layout, records)
        if plots:
            from piggyback_tf.evaluation.tables.plots import write_plots

            plots.mkdir(exist_ok=True)
            if not write_plots(plots, records):
                complain(options.command, "There is nothing to plot in these runs: no masks, sequences or sizes.")
    except TableError as error:
        raise UsageError(str(error)) from error
    if output:
        output.mkdir(exist_ok=True)
        for ending, write in FORMATS.values():
            write_atomically(output / f"{table.name}{ending}", write(table))
    names = list(FORMATS) if options.format == "all" else [options.format]
    if options.format == "csv" and not options.json:
        # They would be no CSV.
        for note in table.notes:
            print(printable(note), file=sys.stderr)
    return Answer(table_json(table), "\n".join(FORMATS[name][1](table) for name in names).rstrip("\n"))


def _folder(options: argparse.Namespace, name: str) -> Path | None:
    """Returns the folder that an option names, checked as far as that goes before any work."""
    if getattr(options, name) is None:
        return None
    folder = local_path(getattr(options, name), f"--{name}=")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--{name}={folder}: this is a file; name a folder.")
    check_folder_above(folder, f"--{name}=")
    return folder


def table_json(table: Table) -> dict[str, Any]:
    """Returns a table as JSON values."""
    return {
        "layout": table.name,
        "caption": table.caption,
        "header": table.header,
        "rows": [[_cell(cell) for cell in row] for row in table.rows],
        "notes": table.notes,
    }


def _cell(cell: Cell) -> Any:
    """Returns a cell as JSON values: a number with what belongs to it, a text, or null."""
    if not isinstance(cell, Number):
        return cell
    found: dict[str, Any] = {"value": cell.plain(), "style": cell.style}
    if cell.spread is not None:
        found["spread"] = cell.spread
    return found if cell.second is None else found | {"second": _cell(cell.second)}
