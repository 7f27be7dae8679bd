"""predict: the most probable classes of image files, the class of each of their pixels, or boxes around objects."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.commands.answers import DONE, WRONG, Answer, UsageError
from piggyback_tf.commands.asked_tasks import AskedTasks
from piggyback_tf.commands.common import PACK_HELP, add_base_options, add_batch_size, complain, load_pack, positive
from piggyback_tf.commands.predict_results import add_results_options, check_some_exist, predict_into, read_list
from piggyback_tf.files import local_path, make_folder
from piggyback_tf.foreign_text import some
from piggyback_tf.junk import JUNK, find_files
from piggyback_tf.packs import TaskPack
from piggyback_tf.remote import is_url
from piggyback_tf.targets import TARGETS


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "predict", help="classify image files or their pixels, or find objects in them", allow_abbrev=False
    )
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    command.add_argument("images", metavar="IMAGE", nargs="*", help="image files, folders of them, or URLs")
    command.add_argument(
        "--list",
        metavar="FILE",
        help="a file with more images: one in each line, or, if its name ends in .csv, in the column `image`",
    )
    command.add_argument(
        "--top_k", type=positive, default=5, metavar="K", help="how many classes to print per image; default: 5"
    )
    command.add_argument(
        "--output_dir",
        metavar="DIR",
        help="folder for pictures, made if it is not there. Segmentation: IMAGE.labels.png, whose pixels are class "
        "numbers, and IMAGE.overlay.png, for people. Detection: IMAGE.boxes.png",
    )
    add_results_options(command)
    add_base_options(command)
    add_batch_size(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    if not options.images and options.list is None:
        raise UsageError("The following arguments are required: IMAGE, or --list=FILE with one in each line.")
    if options.results is not None:
        return predict_into(options, _find_images(options))
    for option in ("packs", "part", "shard_size", "jobs"):
        if getattr(options, option) is not None:
            raise UsageError(f"--{option} goes with --results=DIR.")
    pack, _ = load_pack(options.pack)
    paths = _find_images(options)
    check_some_exist(paths)
    asked = AskedTasks([pack], options)
    _check_output_dir(options, pack, paths)
    status = DONE
    answers: list[dict[str, Any]] = []
    for start in range(0, len(paths), options.batch_size):
        for found in asked.answer(paths[start : start + options.batch_size]):
            problems = found.problems()
            answers.append({"image": found.path, **found.values.get(pack.task, {"error": found.error})})
            for problem in problems:
                status = WRONG
                complain(options.command, problem)
            if not (problems or options.json):  # A batch at a time, since there may be many.
                print("\n".join([found.path, *found.lines[pack.task]]))
    return Answer(answers, status=status)


def _check_output_dir(options: argparse.Namespace, pack: TaskPack, paths: Sequence[str]) -> None:
    """Makes the folder of the pictures; raises a `UsageError` if they cannot be written, or there are none."""
    if options.output_dir is None:
        return
    from piggyback_tf.commands.shown_answers import SHOWN

    if not (pack.problem in SHOWN and SHOWN[pack.problem].draws):
        raise UsageError(
            f"--output_dir: task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)}, and has no pictures."
        )
    names = [Path(path).name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"Two images are called {twice[0]!r}, and would have the same pictures in {options.output_dir!r}; ask for "
            "them one after the other, with an --output_dir for each."
        )
    make_folder(local_path(options.output_dir, "--output_dir="))


def _find_images(options: argparse.Namespace) -> list[str]:
    """Returns the image files that are meant: those that are named or listed, and those in and below folders.

    What systems leave beside people's files is passed over, since `photos/*` names it, too.

    Raises:
        UsageError: If a folder has no images, or nothing is left.
    """
    from piggyback_tf.data.unusable_files import is_photo_by_name

    given, found = options.images, [] if options.list is None else read_list(Path(options.list))
    for path in given:
        if is_url(path):
            found.append(path)
        elif Path(path).name.lower() in JUNK:
            complain(options.command, f"{path!r} is left out: files of this name are the system's own.")
        elif Path(path).is_dir():
            if not (inside := [str(file) for file in find_files(path) if is_photo_by_name(file)]):
                raise UsageError(f"The folder {path!r} has no image files.")
            found += inside
        else:
            found.append(path)
    if not found:
        raise UsageError(f"There are no images among {some(given or [options.list], form=repr)}.")
    return found
