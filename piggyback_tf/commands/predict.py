"""predict: the most probable classes of image files, the class of each of their pixels, or boxes around objects."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import DONE, WRONG, Answer, UsageError
from piggyback_tf.commands.common import (
    PACK_HELP,
    add_base_options,
    add_batch_size,
    choose_base,
    complain,
    load_bank,
    load_pack,
    positive,
)
from piggyback_tf.foreign_text import some
from piggyback_tf.junk import JUNK, find_files
from piggyback_tf.packs import TaskPack
from piggyback_tf.remote import RemoteError, is_url, read_bytes
from piggyback_tf.targets import TARGETS

if TYPE_CHECKING:
    import numpy as np

    from piggyback_tf.commands.shown_answers import AskedImage
    from piggyback_tf.data import Operation


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "predict", help="classify image files or their pixels, or find objects in them", allow_abbrev=False
    )
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files, folders of them, or URLs")
    command.add_argument(
        "--top_k", type=positive, default=5, metavar="K", help="how many classes to print per image; default: 5"
    )
    command.add_argument(
        "--output_dir",
        metavar="DIR",
        help="an existing folder for pictures. Segmentation: IMAGE.labels.png, whose pixels are class numbers, and "
        "IMAGE.overlay.png, for people. Detection: IMAGE.boxes.png",
    )
    add_base_options(command)
    add_batch_size(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.data import DataError, parse_augment
    from piggyback_tf.data.augment import check_draws_nothing

    pack, _ = load_pack(options.pack)
    base = choose_base(pack, options.backbone, options.weights)
    paths = _find_images(options.images)
    missing = {path for path in paths if not is_url(path) and not Path(path).exists()}
    if len(missing) == len(paths):
        raise UsageError(
            _no_file(paths[0]) if len(paths) == 1 else f"There is none of these files: {some(paths, form=repr)}."
        )
    try:
        operations = parse_augment(pack.eval_augment)
        check_draws_nothing(operations, pack.eval_augment)
    except DataError as error:
        raise UsageError(str(error)) from error
    _check_output_dir(options, pack, paths)
    bank, status = None, DONE
    answers: list[dict[str, Any]] = []
    for start in range(0, len(paths), options.batch_size):
        places, images = [], []
        for path in paths[start : start + options.batch_size]:
            try:
                if path in missing:
                    raise DataError(_no_file(path))
                asked, image = _read_prepared(path, operations, pack)
                images.append(image)
                places.append((len(answers), asked))
                answers.append({"image": path})
            except (DataError, RemoteError) as error:
                status = WRONG
                answers.append({"image": path, "error": str(error)})
                complain(options.command, str(error))
        if not images:
            continue
        bank = bank or load_bank(pack, base)
        from piggyback_tf.commands.shown_answers import SHOWN

        found = bank.predict(images, task=pack.task, batch_size=options.batch_size)
        for (place, asked), answer in zip(places, found, strict=True):
            values, lines = SHOWN[pack.problem].show(pack, answer, asked, options)
            answers[place] |= values
            if not options.json:  # A batch at a time, since there may be many.
                print("\n".join([asked.path, *lines]))
    return Answer(answers, status=status)


def _check_output_dir(options: argparse.Namespace, pack: TaskPack, paths: Sequence[str]) -> None:
    """Raises a `UsageError` if the pictures cannot be written, or there are none."""
    if options.output_dir is None:
        return
    from piggyback_tf.commands.shown_answers import SHOWN

    if not (pack.problem in SHOWN and SHOWN[pack.problem].draws):
        raise UsageError(
            f"--output_dir: task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)}, and has no pictures."
        )
    if not Path(options.output_dir).is_dir():
        raise UsageError(f"--output_dir={options.output_dir}: there is no such folder.")
    names = [Path(path).name for path in paths]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(
            f"Two images are called {twice[0]!r}, and would have the same pictures in {options.output_dir!r}; ask for "
            "them one after the other, with an --output_dir for each."
        )


def _find_images(given: Sequence[str]) -> list[str]:
    """Returns the image files that are meant: those that are named, and those in and below folders.

    What systems leave beside people's files is passed over, since `photos/*` names it, too.

    Raises:
        UsageError: If a folder has no images, or nothing is left.
    """
    from piggyback_tf.data.images import has_image_extension

    found = []
    for path in given:
        if is_url(path):
            found.append(path)
        elif Path(path).name.lower() in JUNK:
            continue
        elif Path(path).is_dir():
            if not (inside := [str(file) for file in find_files(path) if has_image_extension(file)]):
                raise UsageError(f"The folder {path!r} has no image files.")
            found += inside
        else:
            found.append(path)
    if not found:
        raise UsageError(f"There are no images among {some(given, form=repr)}.")
    return found


def _no_file(path: str) -> str:
    return f"There is no image file {path!r}."


def _read_prepared(path: str, operations: list["Operation"], pack: TaskPack) -> "tuple[AskedImage, np.ndarray]":
    from piggyback_tf.commands.shown_answers import AskedImage
    from piggyback_tf.data import DataError, decode_image, read_image
    from piggyback_tf.data.augment import apply_operations, check_final_size

    original = decode_image(read_bytes(path), path) if is_url(path) else read_image(path)
    try:
        image = apply_operations(operations, original)
        check_final_size(pack.eval_augment, image.shape[:2], pack.image_shape)
    except DataError as error:
        raise DataError(f"Image {path!r} cannot be prepared: {error}") from error
    return AskedImage(path, original, operations), image
