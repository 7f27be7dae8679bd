"""predict: the most probable classes of image files."""

import argparse
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
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.remote import RemoteError, is_url, read_bytes
from piggyback_tf.sentences import printable

if TYPE_CHECKING:
    import numpy as np

    from piggyback_tf.data import Operation


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser("predict", help="classify image files", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or URLs of some")
    command.add_argument(
        "--top_k", type=positive, default=5, metavar="K", help="how many classes to print for an image; default: 5"
    )
    add_base_options(command)
    add_batch_size(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.data import DataError, parse_augment
    from piggyback_tf.data.augment import check_draws_nothing

    pack, _ = load_pack(options.pack)
    base = choose_base(pack, options.backbone, options.weights)
    if missing := [path for path in options.images if not is_url(path) and not Path(path).is_file()]:
        folder = Path(missing[0]).is_dir()
        raise UsageError(
            f"{missing[0]!r} is a folder. Name the image files in it, such as {missing[0].rstrip('/')}/*."
            if folder
            else f"There is no image file {missing[0]!r}."
        )
    try:
        operations = parse_augment(pack.eval_augment)
        check_draws_nothing(operations, pack.eval_augment)
    except DataError as error:
        raise UsageError(str(error)) from error
    bank, status = None, DONE
    answers: list[dict[str, Any]] = []
    for start in range(0, len(options.images), options.batch_size):
        places, images = [], []
        for path in options.images[start : start + options.batch_size]:
            try:
                images.append(_read_prepared(path, operations, pack))
                places.append(len(answers))
                answers.append({"image": path, "classes": []})
            except (DataError, RemoteError) as error:
                status = WRONG
                answers.append({"image": path, "error": str(error)})
                complain(options.command, str(error))
        if not images:
            continue
        bank = bank or load_bank(pack, base)
        scores = bank.predict(images, task=pack.task, batch_size=options.batch_size)
        for answer, probabilities in zip((answers[place] for place in places), scores, strict=True):
            # Of equal probabilities the first class comes first, as in the errors.
            best = (-probabilities).argsort(kind="stable")[: options.top_k]
            answer["classes"] = [
                {"class": pack.class_names[place], "probability": float(probabilities[place])} for place in best
            ]
            if not options.json:  # A batch at a time, since there may be many.
                print(answer["image"])
                for found in answer["classes"]:
                    print(f"  {100 * found['probability']:6.2f} %  {printable(found['class'])}")
    return Answer(answers, status=status)


def _read_prepared(path: str, operations: list["Operation"], pack: TaskPack) -> "np.ndarray":
    from piggyback_tf.data import DataError, decode_image, read_image
    from piggyback_tf.data.augment import apply_operations, check_final_size

    image = decode_image(read_bytes(path), path) if is_url(path) else read_image(path)
    try:
        image = apply_operations(operations, image)
        check_final_size(pack.eval_augment, image.shape[:2], pack.image_shape)
    except DataError as error:
        raise DataError(f"Image {path!r} cannot be prepared: {error}") from error
    return image
