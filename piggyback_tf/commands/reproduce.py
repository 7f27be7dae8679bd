"""reproduce: the tables of the Piggyback paper, from their runs to the table with the paper's figures beside."""

import argparse
import fnmatch
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import DONE, INTERRUPTED, WRONG, Answer, UsageError
from piggyback_tf.commands.common import complain
from piggyback_tf.commands.reproduce_needs import DataNeed, data_needs, disk_bytes, gpu_hours
from piggyback_tf.commands.reproduce_plan import DATA_ROOT, OUTPUT, TABLES, PlannedRun, figures
from piggyback_tf.commands.table import table_json
from piggyback_tf.evaluation.results import ResultsError, read_json
from piggyback_tf.evaluation.tables import TableError, make_table, read_runs, to_markdown
from piggyback_tf.evaluation.tables.beside import with_figures
from piggyback_tf.evaluation.tables.paper import NORM_TITLES, TITLES
from piggyback_tf.evaluation.text import format_bytes
from piggyback_tf.extras import extra_sentence, is_installed
from piggyback_tf.file_names import METRICS_FILE, SETTINGS_FILE
from piggyback_tf.files import local_path


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    tables = "; ".join(f"{name}: {table.about}" for name, table in TABLES.items())
    command = commands.add_parser(
        "reproduce",
        help="do the runs of a table of the Piggyback paper, and print it beside the paper's figures",
        description="Does the runs of a table of the paper, one after another, and prints the table beside the paper's "
        "figures. It skips finished runs, and continues an interrupted one. Call it in the folder of a checkout of the "
        "repository.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("table", metavar="TABLE", choices=TABLES, help=tables)
    command.add_argument(
        "--data_root", default=DATA_ROOT, metavar="DIR", help=f"folder with the image folders; default: {DATA_ROOT}"
    )
    command.add_argument("--data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets")
    command.add_argument(
        "--output_dir", default=OUTPUT, metavar="DIR", help=f"folder for the folders of all runs; default: {OUTPUT}"
    )
    command.add_argument(
        "--seeds", type=_seeds, default=[0], metavar="N,N", help="do each run with each of these seeds; default: 0"
    )
    command.add_argument(
        "--only",
        action="append",
        metavar="PATTERN",
        help="only runs of matching names, such as 'cubs*'; may be repeated",
    )
    command.add_argument(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="only every N-th run, from the I-th on; give each of N machines another I",
    )
    command.add_argument(
        "--dry_run", action="store_true", help="only list the runs, the paper's figures, data, time and disk space"
    )
    return command


def _run(options: argparse.Namespace) -> Answer:
    table = TABLES[options.table]
    runs = _planned(options)
    chosen = _chosen(runs, options)
    needs = data_needs(chosen)
    value: dict[str, Any] = {"table": options.table, "data": [vars(need) for need in needs]}
    if options.dry_run:
        value |= {"runs": [_described(run) for run in chosen], "result": None}
        return Answer(value, _listing(options.table, chosen, needs))
    # What is finished needs no data: its folder may come from another machine.
    if missing := [need for need in data_needs(_pending(chosen)) if need.state == "missing"]:
        raise UsageError(_missing_sentence(missing))
    if options.table.startswith("figure") and not is_installed("matplotlib"):
        raise UsageError(f"{options.table}: {extra_sentence('matplotlib')}")
    for run in runs:
        _check_settings(run)
    errors = _run_all(chosen, options)
    finished = [run for run in runs if _is_finished(run)]
    result, text = _result(options.table, finished, Path(options.output_dir))
    value |= {"runs": [_described(run, errors.get(run.name, "")) for run in chosen], "result": result}
    text += f"\n{len(finished)} of {len(runs)} runs of {options.table} ({table.about}) are finished."
    return Answer(value, text, WRONG if errors else DONE)


def _planned(options: argparse.Namespace) -> list[PlannedRun]:
    """Returns all runs of a table, with each seed."""
    root, output = (str(local_path(getattr(options, n), f"--{n}=")) for n in ("data_root", "output_dir"))
    data_dir = None if options.data_dir is None else str(local_path(options.data_dir, "--data_dir="))
    planned = []
    for place, seed in enumerate(options.seeds):
        for run in TABLES[options.table].runs:
            if run.seeded:
                planned.append(PlannedRun(run, seed, root, output, data_dir))
            elif place == 0:  # A base is trained once.
                planned.append(PlannedRun(run, 0, root, output, data_dir))
    return planned


def _chosen(runs: Sequence[PlannedRun], options: argparse.Namespace) -> list[PlannedRun]:
    """Returns the runs that are meant."""
    found = list(runs)
    for pattern in options.only or ():
        if not any(fnmatch.fnmatch(run.name, pattern) for run in runs):
            names = ", ".join(run.name for run in runs)
            raise UsageError(f"--only={pattern}: no run of {options.table} has such a name. Runs: {names}.")
    if options.only:
        found = [run for run in runs if any(fnmatch.fnmatch(run.name, pattern) for pattern in options.only)]
    first, step = options.part
    return found[first - 1 :: step]


def _pending(runs: Sequence[PlannedRun]) -> list[PlannedRun]:
    """Returns the runs that are to be done: those that are not finished, but no base for finished ones alone."""
    waiting = [run for run in runs if not _is_finished(run)]
    needed = {run.run.needs for run in waiting}
    done = {run.run.needs for run in runs} - needed
    return [run for run in waiting if run.run.folder not in done]


def _is_finished(run: PlannedRun) -> bool:
    return (run.folder / METRICS_FILE).is_file()


def _check_settings(run: PlannedRun) -> None:
    """Raises a `UsageError` if a folder has a finished run with other settings, which would be taken for this one."""
    if not _is_finished(run):
        return
    try:
        record = read_json(run.folder / SETTINGS_FILE)
        for name, wanted in {**run.flags, "seed": str(run.seed)}.items():
            # Where data and bases are may differ from machine to machine.
            if name in record and name not in ("data", "tasks", "weights") and not _is_same(record[name], wanted):
                raise UsageError(
                    f"The run in {str(run.folder)!r} has {name}={record[name]}, and that of the table has "
                    f"{name}={wanted}. Name another --output_dir, or move the folder."
                )
    except (ResultsError, OSError) as error:
        raise UsageError(f"The run in {str(run.folder)!r} cannot be read: {error}") from error


def _is_same(value: Any, text: str) -> bool:
    """Whether a recorded setting has the value that a file of flags gives as text."""
    if type(value) in (int, float):
        return float(text) == value
    return not isinstance(value, str) or value == text


def _run_all(runs: Sequence[PlannedRun], options: argparse.Namespace) -> dict[str, str]:
    """Runs what is not finished; returns why, by the name of each run that did not end well."""
    errors: dict[str, str] = {}
    pending = _pending(runs)
    for place, run in enumerate(runs, start=1):
        about = f"run {place} of {len(runs)}, {run.name}"
        if run not in pending:
            print(f"{about}: {'finished before' if _is_finished(run) else 'needed by none'}.", file=sys.stderr)
            continue
        if run.run.needs and not Path(run.weights).is_file():
            errors[run.name] = f"its base is not there, {run.weights!r}, which the run {run.run.needs!r} leaves"
        else:
            print(f"{about}: {run.command}", file=sys.stderr, flush=True)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            # A process of its own gives memory back, and does not end the others. Its stdout is not the answer's.
            arguments = [sys.executable, "-m", "piggyback_tf", "train", *run.arguments]
            status = subprocess.run(arguments, stdout=sys.stderr).returncode
            if status in (INTERRUPTED, -2):
                raise KeyboardInterrupt
            if status:
                errors[run.name] = f"it ended with status {status}"
        if run.name in errors:
            complain(options.command, f"{about} is not finished: {errors[run.name]}.")
    return errors


def _result(name: str, finished: Sequence[PlannedRun], output: Path) -> tuple[dict[str, Any] | None, str]:
    """Returns a table of the finished runs with the paper's figures, as JSON values and as text."""
    # What a base has learned is in no table; it is what others start from.
    folders = [str(run.folder) for run in finished if run.run.seeded]
    if not folders:
        return None, "No run is finished, so that there is no table yet."
    try:
        records = read_runs(folders)
        table = with_figures(make_table(TABLES[name].layout, records), _figures_of(name, finished))
        value, text = table_json(table), to_markdown(table).rstrip("\n")
        if name.startswith("figure"):
            from piggyback_tf.evaluation.tables.plots import write_plots

            (output / name).mkdir(exist_ok=True)
            plots = [str(path) for path in write_plots(output / name, records)]
            value, text = value | {"plots": plots}, "\n".join([text, "", *plots])
    except TableError as error:
        raise UsageError(str(error)) from error
    return value, text


def _figures_of(name: str, runs: Sequence[PlannedRun]) -> dict[tuple[tuple[str, ...], str], str]:
    """Returns what the paper has, by the left cells of a row and how the title of a column begins."""
    layout = TABLES[name].layout
    found: dict[tuple[tuple[str, ...], str], str] = {}
    for run in runs:
        flags = run.flags
        task, network, column = flags.get("task", ""), flags["backbone"], _column(name, run)
        if (figure := expected(name, run)) and column:
            found[(network, task) if layout in ("paper4", "paper7") else (task,), column] = figure
    return found


def _column(name: str, run: PlannedRun) -> str:
    """Returns how the title of a run's column begins."""
    layout, flags = TABLES[name].layout, run.flags
    if layout == "paper5":
        return f"{flags['backbone']}, {Path(flags['weights']).name}"
    if layout == "paper6":
        return flags["backbone"]
    if layout == "paper7":
        return NORM_TITLES[flags["norm"]]
    return TITLES.get(run.flags["method"], "")


def expected(name: str, run: PlannedRun) -> str:
    """Returns what the paper has for a run of a table; empty if that is not known.

    Args:
        name: The table: of masks it has errors, or how many weights they drop.
        run: The run.
    """
    known, layout = figures(run.run), TABLES[name].layout
    if layout == "paper6":
        return known.get("zeros", "")
    if run.run.files[-1].startswith("backbones/"):
        return ""  # Another start than that of the file.
    if layout == "paper7" and run.flags["norm"] == "task":
        return known.get(NORM_TITLES["task"], "")
    return known.get(TITLES.get(run.flags["method"], "").lower(), "")


def _described(run: PlannedRun, error: str = "") -> dict[str, Any]:
    """Returns a run as JSON values."""
    hours = gpu_hours(run)
    return {
        "name": run.name,
        "folder": str(run.folder),
        "command": run.command,
        "seed": run.seed,
        "finished": _is_finished(run),
        "needs": run.run.needs or None,
        "paper": figures(run.run),
        "gpu_hours": None if hours is None else round(hours, 2),
        "disk_bytes": disk_bytes(run),
        **({"error": error} if error else {}),
    }


def _listing(name: str, runs: Sequence[PlannedRun], needs: Sequence[DataNeed]) -> str:
    """Returns what a person is told of the runs of a table."""
    lines = [f"{name}: {TABLES[name].about}.", ""]
    hours, space = 0.0, 0
    for run in runs:
        own, size = gpu_hours(run), disk_bytes(run)
        hours, space = hours + (own or 0) * (not _is_finished(run)), space + (size or 0)
        about = [
            "finished" if _is_finished(run) else "not finished",
            f"paper: {_shown(name, expected(name, run))}",
            "hours not known" if own is None else f"{own:,.1f} GPU hours",
            "size not known" if size is None else format_bytes(size),
        ]
        lines += [f"{run.name} ({'; '.join(about)})", f"    {run.command}"]
    lines += ["", "Data:"]
    words = {"there": "is there", "missing": "is missing", "downloaded": "is downloaded by the first run that needs it"}
    for need in needs:
        lines.append(f"  {need.spec}: {need.place} {words[need.state]}")
        if need.state == "missing":
            lines.append(f"    {need.about}")
    lines += [
        "",
        f"{len(runs)} runs, {sum(map(_is_finished, runs))} finished. The rest takes about {hours:,.1f} GPU hours, "
        f"which are computed, not measured. All results take about {format_bytes(space)}.",
    ]
    return "\n".join(lines)


def _shown(name: str, figure: str) -> str:
    if not figure:
        return "no figure at hand"
    return f"{figure} % zeros" if TABLES[name].layout == "paper6" else f"error of {figure} %"


def _missing_sentence(missing: Sequence[DataNeed]) -> str:
    listed = "\n".join(f"  {need.place}, for {need.spec}\n    {need.about}" for need in missing)
    return (
        f"Data are missing; --only=PATTERN runs what does not need them:\n{listed}\n"
        "Folders are looked for in --data_root, data sets of TensorFlow Datasets in --data_dir."
    )


def _seeds(text: str) -> list[int]:
    """Converts an argument to seeds."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        seeds = [-1]
    if min(seeds) < 0 or len({*seeds}) < len(seeds):
        raise argparse.ArgumentTypeError(f"must be integers of at least 0, each once, with commas, not {text!r}")
    return seeds


def _part(text: str) -> tuple[int, int]:
    """Converts an argument to a part and the number of parts."""
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise argparse.ArgumentTypeError(f"must be I/N with I from 1 to N, such as 2/3, not {text!r}")
    return int(first), int(count)
