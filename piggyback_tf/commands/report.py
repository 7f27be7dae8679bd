"""report: a page for the browser on runs and packs, without TensorFlow."""

import argparse
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import DONE, WRONG, Answer, UsageError
from piggyback_tf.commands.common import PACK_HELP, check_output, complain, load_pack, prepare_for
from piggyback_tf.files import with_home
from piggyback_tf.remote import is_url

_IMAGES = 24
_MOST_IMAGES = 1000


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "report",
        help="write an HTML page on runs and packs; needs no TensorFlow",
        description="Writes one self-contained HTML file: errors with intervals, learning curves, zeros by layer, the "
        "images that tasks get wrong, with the answers, and what the masks of several tasks have in common.",
        allow_abbrev=False,
    )
    command.set_defaults(run=_run)
    command.add_argument(
        "sources",
        metavar="RUN|PACK",
        nargs="+",
        help=f"folder that train wrote, or one with packs in it; or {PACK_HELP}",
    )
    command.add_argument(
        "--output", default="report.html", type=with_home, metavar="FILE", help="the page; default: report.html"
    )
    command.add_argument(
        "--images",
        type=_count,
        default=_IMAGES,
        metavar="N",
        help=f"how many wrong images to show per task, 0 for none; default: {_IMAGES}",
    )
    command.add_argument("--data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets")
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.evaluation.page import is_page, read_subjects, write_page

    output = options.output
    if is_url(output):
        raise UsageError(f"--output={output}: this is a URL; name a file of this machine.")
    check_output(output)
    if Path(output).is_file() and not is_page(output):
        raise UsageError(f"--output={output}: this is there already, and no page of this command. Name another file.")

    def load(path: str) -> tuple[Any, int]:
        pack, data = load_pack(path)
        return pack, len(data)

    subjects = read_subjects([with_home(source) for source in options.sources], load)
    if not subjects.tasks and len(subjects.problems) == 1:
        raise UsageError(subjects.problems[0])
    for problem in (*subjects.problems, *subjects.notes):
        complain(options.command, problem)
    if not subjects.tasks:
        raise UsageError("None of these can be shown, and no page was written.")
    for data in {one.answers.data for one in subjects.tasks if one.answers and options.images}:
        prepare_for(data, options.data_dir)
    written = write_page(output, subjects, options.images, options.data_dir)
    tasks = len(subjects.tasks)
    text = f"{output}: {tasks} {'task' if tasks == 1 else 'tasks'}, {written['bytes']:,} bytes. Open it in a browser."
    value = {"file": output, **written, "notes": subjects.notes, "problems": subjects.problems}
    return Answer(value, text, WRONG if subjects.problems else DONE)


def _count(text: str) -> int:
    """Converts an argument to a number of images."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value <= _MOST_IMAGES:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {_MOST_IMAGES}, not {text!r}")
    return value
