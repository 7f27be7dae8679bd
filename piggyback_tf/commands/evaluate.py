"""evaluate: the errors of a pack on a data set."""

import argparse
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import (
    PACK_HELP,
    add_base_options,
    add_batch_size,
    choose_base,
    complain,
    load_bank,
    load_pack,
    prepare_for,
    seed_of,
)
from piggyback_tf.commands.progress import ProgressBar
from piggyback_tf.evaluation import format_error
from piggyback_tf.evaluation.answers import ANSWERS, AnswerLog, AnswersError, read_answers, stored_size
from piggyback_tf.evaluation.text import ERROR_TITLES, format_measures, format_pairs, interval_kind
from piggyback_tf.file_names import answers_name
from piggyback_tf.files import check_target, same_look
from piggyback_tf.foreign_text import some
from piggyback_tf.packs import TaskPack
from piggyback_tf.remote import is_url

if TYPE_CHECKING:
    import numpy as np

    from piggyback_tf.data import Source, TaskData
    from piggyback_tf.data.unusable_files import UnusableFile


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser("evaluate", help="measure the errors of a pack on a data set", allow_abbrev=False)
    command.set_defaults(run=_run)
    command.add_argument("pack", metavar="PACK", help=PACK_HELP)
    command.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="the images: folder:PATH, multilabel:PATH, segmentation:PATH, coco:PATH, voc:PATH, tfds:NAME or digits; "
        "see train.py",
    )
    command.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="the split to measure; default: test"
    )
    command.add_argument("--data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets")
    command.add_argument(
        "--skip_broken_images",
        action="store_true",
        help="skip files that cannot be used, and count them, instead of ending with an error",
    )
    command.add_argument(
        "--answers",
        action="store_true",
        help="also write the answer to each image to the pack's folder, for `report`",
    )
    add_base_options(command)
    add_batch_size(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    from piggyback_tf.data import TARGETS, DataError, Renumbered
    from piggyback_tf.data.augment import check_final_size
    from piggyback_tf.data.images import PIXELS_VERSION

    pack, _ = load_pack(options.pack)
    answers = _answers_file(options, pack) if options.answers else None
    base = choose_base(pack, options.backbone, options.weights)
    try:
        data = _load_data(pack, options)
        source = images = getattr(data, options.split)
        if source is None:
            raise UsageError(f"The data {options.data!r} have no {options.split} split; choose another --split.")
        if data.target != pack.problem:
            raise UsageError(
                f"Task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)}, and the data {options.data!r} "
                f"have {TARGETS[data.target]}."
            )
        source = Renumbered(source, _class_numbers(data, pack), len(pack.class_names))
        # What is no image by its name is only of interest where the images of this split are.
        if listed := data.problems.get(options.split):
            _tell_all_problems(images, pack, options, listed)
        bank = load_bank(pack, base)
        from piggyback_tf.problems import PROBLEMS
        from piggyback_tf.sequences.measure import measure_answers, measured_batches

        problem, log = PROBLEMS[pack.problem](pack.class_names, pack.image_shape), AnswerLog(data.target, True)
        # Every image is read once, so that a cache would only cost memory.
        batches = measured_batches(problem, source, pack.eval_augment, batch_size=options.batch_size, cache="none")

        def predict(images: Any) -> "np.ndarray":
            check_final_size(pack.eval_augment, tuple(images.shape[1:3]), pack.image_shape)
            return bank.predict(images, task=pack.task, batch_size=options.batch_size)

        try:
            result = measure_answers(
                predict,
                problem,
                pack.eval_augment,
                _with_progress(batches, source, options.batch_size),
                log if answers else None,
            )
        except DataError:
            _tell_all_problems(images, pack, options)
            raise
        if answers:
            written = log.write(
                answers,
                data,
                options.split,
                task=pack.task,
                errors=result,
                class_names=pack.class_names,
                by="evaluate",
            )
            answers = answers if written else None
    except DataError as error:
        raise UsageError(str(error)) from error
    told = {
        "task": pack.task,
        "data": f"{options.data}, {options.split} split",
        "images": f"{result['images']:,}" + (f" ({len(source.skipped):,} broken left out)" if source.skipped else ""),
    }
    told |= {title: format_error(result, name) for name, title in ERROR_TITLES.items() if name in result}
    told |= format_measures(result)
    if options.split in pack.errors:
        told["as of training"] = format_error(pack.errors[options.split])
    if other := _other_images(images, pack, options):
        complain(options.command, other)
    if pack.versions.get("pixels") != PIXELS_VERSION:
        complain(
            options.command,
            f"Task {pack.task!r} was trained when image files were decoded in another way: images with another colour "
            "profile than sRGB, with an orientation that XMP alone names, or with transparency of an unusual kind may "
            "look other than in its training.",
        )
    if answers:
        told["answers"] = str(answers)
    value = {
        "file": options.pack,
        "task": pack.task,
        "data": options.data,
        "split": options.split,
        **result,
        "skipped_images": len(source.skipped),
        "as_of_training": pack.errors.get(options.split),
        **({"answers": str(answers)} if answers else {}),
    }
    return Answer(value, "\n".join([*format_pairs(told), f"In brackets: {interval_kind(result)}."]))


def _answers_file(options: argparse.Namespace, pack: TaskPack) -> Path:
    """Returns the file of the answers, beside the pack, where `report` looks for it.

    Raises:
        UsageError: If the pack is elsewhere, the answers of its run are there, or none are recorded of such tasks.
    """
    if pack.problem not in ANSWERS:
        from piggyback_tf.data import TARGETS

        raise UsageError(
            f"--answers: task {pack.task!r} finds {TARGETS.get(pack.problem, pack.problem)}, of which no answers are "
            "recorded in this version. Leave it out."
        )
    if is_url(options.pack):
        raise UsageError(
            f"--answers writes beside the pack, and {options.pack} is a URL. Copy the pack to this machine."
        )
    path = Path(options.pack).parent / answers_name(pack.task)
    with contextlib.suppress(AnswersError, OSError):
        if read_answers(path).by == "train":
            raise UsageError(
                f"{str(path)!r} has the answers that the run of the pack recorded. Leave --answers out, or copy the "
                "pack to another folder first."
            )
    check_target(path)
    return path


def _tell_all_problems(
    source: "Source", pack: TaskPack, options: argparse.Namespace, listed: "Sequence[UnusableFile]" = ()
) -> None:
    """Looks at all images of the split, and raises a `DataProblems` with all that is wrong with them, if anything is.

    Only where something is wrong, so that good images are decoded once.
    """
    from piggyback_tf.data import Part, check_images

    with ProgressBar("images looked at") as bar:
        # Measured without a cache, so that none is filled here.
        check_images([Part(source, pack.eval_augment, "uncached")], options.data, listed=listed, progress=bar)


def _other_images(source: "Source", pack: TaskPack, options: argparse.Namespace) -> str | None:
    """Returns what to say if the images are not those that the training measured, as far as it left a record."""
    count, before = len(source), pack.errors.get(options.split, {}).get("images")
    if before is None:
        return None
    begin = f"These are not the {options.split} images that the training measured"
    if count != before:
        return f"{begin}: there were {before:,}, and now there are {count:,}."
    recorded = None
    if not is_url(options.pack):
        with contextlib.suppress(AnswersError, OSError):
            recorded = read_answers(Path(options.pack).parent / answers_name(pack.task))
    if recorded is None or (recorded.by, recorded.task, recorded.split) != ("train", pack.task, options.split):
        return None
    was = dict(zip(recorded.images, recorded.sizes, strict=True))
    other = sum(was.get(source.key(index), -1) != stored_size(source, index) for index in range(count))
    return f"{begin}: {other:,} of {count:,} have other names, or other sizes in bytes." if other else None


def _load_data(pack: TaskPack, options: argparse.Namespace) -> "TaskData":
    from piggyback_tf.data import load_data

    # The split between training and validation images is drawn as it was for the training of the pack.
    drawn: dict[str, Any] = {"seed": seed_of(pack)} if "seed" in pack.settings else {}
    if "val_fraction" in pack.settings:
        drawn["val_fraction"] = fraction = pack.settings["val_fraction"]
        if type(fraction) not in (int, float):
            raise UsageError(f"The pack's settings have a val_fraction that is no number: {fraction!r}.")
    if options.split != "test" and len(drawn) < 2:
        raise UsageError(
            f"The pack does not say how its validation images were drawn (seed, val_fraction), so that the "
            f"{options.split} split cannot be drawn again; use --split=test."
        )
    prepare_for(options.data, options.data_dir)
    return load_data(
        options.data,
        data_dir=options.data_dir,
        skip_broken_images=options.skip_broken_images,
        raise_problems=False,
        **drawn,
    )


def _class_numbers(data: "TaskData", pack: TaskPack) -> "np.ndarray":
    """Returns the pack's number of each class of the data: classes are the same if their names look the same."""
    import numpy as np

    places = {same_look(name): place for place, name in enumerate(pack.class_names)}
    # Of a pack of before, whose classes may look the same, their exact names decide.
    places |= {name: place for place, name in enumerate(pack.class_names)}
    found = [places.get(name, places.get(same_look(name))) for name in data.class_names]
    unknown = [name for name, place in zip(data.class_names, found, strict=True) if place is None]
    if unknown:
        raise UsageError(
            f"The data {data.spec!r} have {len(unknown)} of {len(data.class_names)} classes that task {pack.task!r} "
            f"does not know, such as {some(unknown, form=repr)}. The task's classes: "
            f"{some(pack.class_names, form=repr)}."
        )
    return np.array(found, np.int64)


def _with_progress(batches: Iterable, source: "Source", batch_size: int) -> Iterator:
    with ProgressBar("images") as bar:
        for count, batch in enumerate(batches, start=1):
            yield batch
            bar(min(count * batch_size, len(source)), len(source))
