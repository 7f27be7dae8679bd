"""cache: what is kept on disk of data sets, and how to be rid of it."""

import argparse
import datetime
import time
from typing import Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.evaluation.text import format_bytes, format_table


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "cache",
        help="list or clear the decoded images that trainings keep on disk",
        description="Lists what trainings cache on disk: decoded images and small results of scans. Trainings write it "
        "again if it is missing.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument("--cache_dir", metavar="DIR", help="the cache folder; default: the user's")
    command.add_argument("--clear", action="store_true", help="remove everything that no process is using")
    command.add_argument(
        "--unused_days", type=_days, metavar="N", help="with --clear: remove only what was not used for this many days"
    )
    return command


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of days, 0 or more, not {text!r}")
    return value


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.data.cache import cache_folder
    from piggyback_tf.data.disk_cache import list_entries, list_results, remove_cache_leftovers, remove_entry

    folder = cache_folder(options.cache_dir)
    if options.unused_days is not None and not options.clear:
        raise UsageError("--unused_days goes with --clear.")
    entries, results = list_entries(folder), list_results(folder)
    if options.clear:
        oldest = time.time() - 86400 * (options.unused_days or 0)
        old = [entry for entry in entries if entry.used <= oldest]
        removed = [entry for entry in old if remove_entry(entry.path)]
        small = [result for result in results if result.used <= oldest]
        for result in small:
            result.path.unlink(missing_ok=True)
        freed = remove_cache_leftovers(folder) + sum(entry.size for entry in (*removed, *small))
        kept = [entry for entry in old if entry not in removed]
        text = f"Removed {len(removed)} sets of images and {len(small)} small results, {format_bytes(freed)}."
        if kept:
            text += f"\n{len(kept)} are in use by other processes and stay: {', '.join(e.path.name for e in kept)}."
        return Answer([_describe(entry) for entry in removed], text)
    lines = []
    if entries:
        rows = [
            [
                entry.path.name.removeprefix("images-")[:8],
                format_bytes(entry.size),
                _date(entry.used),
                f"{entry.about.get('images', '')}",
                str(entry.about.get("operations", "")),
                str(entry.about.get("first", "")),
            ]
            for entry in entries
        ]
        header = ["entry", "size", "last used", "images", "after", "first image"]
        lines.append(format_table(header, rows, end=2))
    total = sum(entry.size for entry in (*entries, *results))
    lines.append(
        f"{len(entries)} sets of decoded images and {len(results)} small results in {folder}: {format_bytes(total)}. "
        "--clear removes them."
    )
    return Answer([_describe(entry) for entry in entries], "\n".join(lines))


def _describe(entry: Any) -> dict[str, Any]:
    """Returns what the command says of an entry, as JSON values."""
    return {"path": str(entry.path), "bytes": entry.size, "used": _date(entry.used), **_about(entry.about)}


def _about(about: dict[str, Any]) -> dict[str, Any]:
    return {name: about.get(name) for name in ("images", "operations", "first", "last")}


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).isoformat(" ", "minutes")
