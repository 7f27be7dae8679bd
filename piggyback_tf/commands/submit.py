"""submit: answers to the hidden test images of the Visual Decathlon, as its server takes them."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.commands.common import (
    PACK_HELP,
    add_base_options,
    add_batch_size,
    add_output,
    check_new_output,
    choose_base,
    load_bank,
    load_pack,
    prepare_for,
)
from piggyback_tf.commands.progress import ProgressBar
from piggyback_tf.evaluation.decathlon import DOMAINS, DecathlonError, check_devkit, check_domains, write_submission
from piggyback_tf.evaluation.tables import TableError, read_runs
from piggyback_tf.files import local_path, with_home
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.find import packs_in
from piggyback_tf.remote import is_url
from piggyback_tf.top_k import best_classes

if TYPE_CHECKING:
    from piggyback_tf.data.tfds_named import NamedImages
    from piggyback_tf.packs import TaskBank

_DATA = "visual_domain_decathlon"


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declares the command's arguments and returns it; `commands` is what `ArgumentParser.add_subparsers` returns."""
    command = commands.add_parser(
        "submit",
        help="answer the hidden test images of the Visual Decathlon, for its server",
        description="Writes a ZIP archive for the server of the Visual Decathlon. It holds results.json: the answers "
        "of ten tasks to the test images. Each task has the name of its set: " + ", ".join(DOMAINS) + ".",
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
        "--devkit",
        required=True,
        metavar="DIR",
        help="folder of the challenge's development kit (decathlon-1.0-devkit.tar.gz), with SET_test_stripped.json and "
        "SET_train.json in it or in its folder annotations",
    )
    add_output(command, "the archive; default: results.zip", default="results.zip")
    command.add_argument("--data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets")
    add_base_options(command)
    add_batch_size(command)
    return command


def _run(options: argparse.Namespace) -> Answer:
    if is_url(options.output):
        raise UsageError(f"--output={options.output}: this is a URL; name a file of this machine.")
    check_new_output(options)
    devkit = local_path(options.devkit, "--devkit=")
    packs = _find_packs(options.sources)
    try:
        check_domains(packs, "A submission has answers for")
        check_devkit(devkit)
        bases = {task: choose_base(pack, options.backbone, options.weights) for task, (_, pack) in packs.items()}
        answers = _answer_all({task: pack for task, (_, pack) in packs.items()}, bases, options)
        count = write_submission(Path(options.output), devkit, answers)
    except DecathlonError as error:
        raise UsageError(str(error)) from error
    size = Path(options.output).stat().st_size
    sets = [{"task": task, "file": packs[task][0], "images": len(answers[task])} for task in DOMAINS]
    text = f"{options.output}: answers to {count:,} images of ten sets, {size:,} bytes."
    return Answer({"file": options.output, "bytes": size, "answers": count, "sets": sets}, text)


def _find_packs(sources: Sequence[str]) -> dict[str, tuple[str, TaskPack]]:
    """Returns file and pack of each task, by its name.

    Raises:
        UsageError: If there are two packs of a task, or one finds something else than classes.
    """
    found: dict[str, tuple[str, TaskPack]] = {}
    for file in (file for source in map(with_home, sources) for file in _files_of(source)):
        pack, _ = load_pack(file)
        if pack.task in found:
            raise UsageError(
                f"Task {pack.task!r} is there twice: {found[pack.task][0]!r} and {file!r}. Name one of them."
            )
        found[pack.task] = file, pack
    return found


def _files_of(source: str) -> list[str]:
    """Returns the packs that an argument means: itself, those of a run's method, or all in a folder."""
    if is_url(source) or not Path(source).is_dir():
        return [source]
    if files := [str(file) for file in packs_in(source)]:
        return files
    try:
        records = [record for record in read_runs([source]) if not record.baseline]
    except TableError as error:
        raise UsageError(f"{source!r} has no pack in it, and is no run: {error}") from error
    files = [str(file) for record in records for file in record.packs.values()]
    if not files:
        methods = ", ".join(record.method for record in records)
        raise UsageError(
            f"The run in {source!r} has no packs: method {methods} makes none. A submission is made of packs."
        )
    return files


def _answer_all(
    packs: Mapping[str, TaskPack], bases: Mapping[str, tuple[str, str]], options: argparse.Namespace
) -> dict[str, dict[str, int]]:
    """Returns for each set and image the class that its task answers."""
    from piggyback_tf.data import DataError
    from piggyback_tf.data.specs import read_data_dir
    from piggyback_tf.data.tfds_named import NamedImages

    banks: dict[tuple[Any, ...], TaskBank] = {}
    answers: dict[str, dict[str, int]] = {}
    try:
        prepare_for(f"tfds:{_DATA}", options.data_dir)
        data_dir = read_data_dir(f"tfds:{_DATA}", options.data_dir)
        # All at once: what is not there is missed before the first prediction.
        images = {task: NamedImages(f"{_DATA}/{task}", "test", data_dir) for task in DOMAINS}
        for task, own in images.items():
            _check_classes(packs[task], own)
        for task, own in images.items():
            pack = packs[task]
            key = (bases[task], pack.image_size, pack.base_hash)
            if key in banks:
                banks[key].add(pack)
            else:
                banks[key] = load_bank(pack, bases[task])
            answers[task] = _answer(banks[key], pack, own, options.batch_size)
    except DataError as error:
        raise UsageError(str(error)) from error
    return answers


def _check_classes(pack: TaskPack, images: "NamedImages") -> None:
    """Raises a `UsageError` if a task has other classes than its set, in their order: an answer is a place there."""
    if tuple(pack.class_names) != images.class_names:
        raise UsageError(
            f"Task {pack.task!r} was not trained on the decathlon's set: it has {len(pack.class_names):,} classes, and "
            f"tfds:{_DATA}/{pack.task} has {len(images.class_names):,}, or they have other names."
        )


def _answer(bank: "TaskBank", pack: TaskPack, images: "NamedImages", batch_size: int) -> dict[str, int]:
    from piggyback_tf.data import parse_augment
    from piggyback_tf.data.augment import apply_operations, check_final_size

    operations, answers = parse_augment(pack.eval_augment), {}
    with ProgressBar(f"images of {pack.task}") as bar:
        for batch in _batches(iter(images), batch_size):
            prepared = [apply_operations(operations, image) for _, image in batch]
            for image in prepared:
                check_final_size(pack.eval_augment, image.shape[:2], pack.image_shape)
            scores = bank.predict(prepared, task=pack.task, batch_size=batch_size)
            found = (int(best_classes(each, 1)[0]) for each in scores)
            answers |= dict(zip((name for name, _ in batch), found, strict=True))
            bar(len(answers), len(images))
    return answers


def _batches(images: Iterator[tuple[str, Any]], size: int) -> Iterator[list[tuple[str, Any]]]:
    batch: list[tuple[str, Any]] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
