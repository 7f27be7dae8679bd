"""What can be done with task packs and backbones: python -m piggyback_tf evaluate|inspect|predict|backbones

Arguments, packs and data specs are checked before TensorFlow is loaded, which takes seconds; `inspect` never loads it.
"""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.evaluation import evaluate, format_bytes, format_error, format_table, format_zeros
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.version import __version__

if TYPE_CHECKING:
    import numpy as np

    from piggyback_tf.data import Operation, Source, TaskData
    from piggyback_tf.packs import TaskBank

PROGRAM = "python -m piggyback_tf"
# What TensorFlow writes to stderr on any machine, whatever the log level, when it is imported.
_CHATTER = re.compile(r"I\d{4} |\d{4}-.*: I |WARNING: All log messages before absl|E\d{4} .*failed call to cuInit|\s*$")


class UsageError(Exception):
    """Something the caller has to change; the message says what."""


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name; that of the process if None.

    Returns:
        The exit status: 0, or 2 if something that the caller gave is wrong.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Class and file names may hold what the terminal cannot show.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        status = options.run(options)
        sys.stdout.flush()
        return status
    except (UsageError, PackError) as error:
        message = str(error)
    except BrokenPipeError:
        # The reader of the output, such as `head`, has seen enough; Python shall not complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message = f"{error.filename!r}: {error.strerror}." if error.filename and error.strerror else str(error)
    _complain(options.command, message)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(PROGRAM, description="Work with the packs of trained tasks.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"piggyback_tf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser(
        "evaluate", help="measure top-1 and top-5 error of a pack on a data set", allow_abbrev=False
    )
    command.set_defaults(run=_evaluate)
    command.add_argument("pack", metavar="PACK", help="file of the task (.task.safetensors)")
    command.add_argument(
        "--data", required=True, metavar="SPEC", help="the images: folder:PATH, tfds:NAME or digits; see train.py"
    )
    command.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="which of them; default: test"
    )
    command.add_argument("--data_dir", metavar="DIR", help="where TensorFlow Datasets keeps its data sets")
    command.add_argument(
        "--skip_broken_images", action="store_true", help="leave broken images out and count them, instead of an error"
    )
    _add_base_options(command)

    command = commands.add_parser("inspect", help="show what is in packs; needs no TensorFlow", allow_abbrev=False)
    command.set_defaults(run=_inspect)
    command.add_argument("packs", metavar="PACK", nargs="+", help="files of tasks (.task.safetensors)")
    command.add_argument("--layers", action="store_true", help="list the zeros of every mask too")

    command = commands.add_parser("predict", help="classify image files", allow_abbrev=False)
    command.set_defaults(run=_predict)
    command.add_argument("pack", metavar="PACK", help="file of the task (.task.safetensors)")
    command.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    command.add_argument(
        "--top_k", type=_positive, default=5, metavar="K", help="how many classes to print for an image; default: 5"
    )
    _add_base_options(command)

    command = commands.add_parser("backbones", help="list the networks that --backbone takes", allow_abbrev=False)
    command.set_defaults(run=_backbones)
    command.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="such as 'resnet*'; default: all")
    return parser


def _add_base_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--backbone", metavar="NAME", help="the base; default: the one that the pack names")
    command.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="the base's weights: imagenet, random, shipped, or a file; needed if the pack's base came from a file, "
        "whose folder a pack does not know; default: those that the pack names",
    )
    command.add_argument("--batch_size", type=_positive, default=32, metavar="N", help="images at once; default: 32")


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return value


def _backbones(options: argparse.Namespace) -> int:
    from piggyback_tf.backbones import list_backbones

    names = list_backbones(options.pattern)
    if not names:
        raise UsageError(f"No backbone matches {options.pattern!r}. All: {', '.join(list_backbones())}.")
    print("\n".join(names))
    return 0


# ---------------------------------------------------------------------------------------------------------- evaluate


def _evaluate(options: argparse.Namespace) -> int:
    from piggyback_tf.data import DataError, make_dataset, surface_data_errors

    pack = TaskPack.load(options.pack)
    base = _choose_base(pack, options)
    try:
        data = _load_data(pack, options)
        source = getattr(data, options.split)
        if source is None:
            raise UsageError(f"The data {options.data!r} have no {options.split} split; choose another --split.")
        labels = _label_map(data, pack)
        bank = _load_bank(pack, base)
        with surface_data_errors():
            # Every image is read once, so that a cache would only cost memory.
            batches = make_dataset(
                source, pack.eval_augment, batch_size=options.batch_size, training=False, cache="none"
            )
            _check_size(tuple(batches.element_spec[0].shape[1:3]), pack)
            result = evaluate(
                lambda images: bank.predict(images, task=pack.task, batch_size=options.batch_size),
                _with_progress(((images, labels[y.numpy()]) for images, y in batches), source, options.batch_size),
            )
    except DataError as error:
        raise UsageError(str(error)) from error
    rows = [
        ["task", pack.task],
        ["data", f"{options.data}, {options.split} split"],
        ["images", f"{result['images']:,}" + (f" ({len(source.skipped):,} broken left out)" if source.skipped else "")],
    ]
    for k in (1, 5):
        if f"top{k}_error" in result:
            rows.append([f"top-{k} error %", format_error(result, f"top{k}_error")])
    if options.split in pack.errors:
        rows.append(["as of training", format_error(pack.errors[options.split])])
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name.ljust(width)}  {value}" for name, value in rows))
    print("In brackets: 95 % Wilson score interval.")
    return 0


def _load_data(pack: TaskPack, options: argparse.Namespace) -> "TaskData":
    from piggyback_tf.data import load_data

    # The split between training and validation images is drawn as it was for the training of the pack.
    drawn = {name: pack.settings[name] for name in ("val_fraction", "seed") if name in pack.settings}
    if options.split != "test" and len(drawn) < 2:
        raise UsageError(
            f"The pack does not say how its validation images were drawn (seed, val_fraction), so that the "
            f"{options.split} split cannot be drawn again; use --split=test."
        )
    return load_data(options.data, data_dir=options.data_dir, skip_broken_images=options.skip_broken_images, **drawn)


def _label_map(data: "TaskData", pack: TaskPack) -> "np.ndarray":
    """Returns the pack's label of each label of the data: classes are the same if they have the same name."""
    import numpy as np

    places = {name: place for place, name in enumerate(pack.class_names)}
    unknown = [name for name in data.class_names if name not in places]
    if unknown:
        raise UsageError(
            f"The data {data.spec!r} have {len(unknown)} of {len(data.class_names)} classes that task {pack.task!r} "
            f"does not know, such as {_some(unknown)}. The task's classes: {_some(pack.class_names)}."
        )
    return np.array([places[name] for name in data.class_names], np.int64)


def _some(names: list[str], count: int = 5) -> str:
    return ", ".join(map(repr, names[:count])) + (f" and {len(names) - count} more" if len(names) > count else "")


def _with_progress(batches: Iterable, source: "Source", batch_size: int) -> Iterator:
    show = sys.stderr.isatty()
    for count, batch in enumerate(batches, start=1):
        yield batch
        if show:
            print(f"\r{min(count * batch_size, len(source)):,} of {len(source):,} images", end="", file=sys.stderr)
    if show:
        print("\r" + " " * 60 + "\r", end="", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------------------------------- inspect


def _inspect(options: argparse.Namespace) -> int:
    status, packs = 0, []
    for path in options.packs:
        try:
            packs.append((TaskPack.load(path), Path(path).stat().st_size))
        except PackError as error:
            status = 2
            _complain(options.command, str(error))
        except OSError as error:
            status = 2
            _complain(options.command, f"{path!r}: {error.strerror}.")
    if packs:
        header = ["task", "method", "base", "hash", "mask", "classes", "error %", "bytes", "bits/weight", "zeros"]
        print(format_table(header, [_inspect_row(pack, size) for pack, size in packs], left=5))
    if options.layers:
        for pack, _ in packs:
            print(f"\n{pack.task}:\n{format_zeros(pack) if pack.masks else 'no masks'}")
    return status


def _inspect_row(pack: TaskPack, size: int) -> list[str]:
    packed = sum(mask.packed.nbytes for mask in pack.masks.values())
    return [
        pack.task,
        pack.method,
        f"{pack.base_name} ({pack.base_weights})",
        pack.base_hash[:12],
        pack.mask_kind + (" + norm" if pack.norm else ""),
        f"{len(pack.class_names):,}",
        format_error(pack.errors.get("test")),
        format_bytes(size),
        f"{8 * packed / pack.masked_weights:.3f}" if pack.masks else "-",
        f"{100 * pack.zeros_total:.2f} %" if pack.masks else "-",
    ]


# ----------------------------------------------------------------------------------------------------------- predict


def _predict(options: argparse.Namespace) -> int:
    from piggyback_tf.data import DataError, parse_augment

    pack = TaskPack.load(options.pack)
    base = _choose_base(pack, options)
    if missing := [path for path in options.images if not Path(path).is_file()]:
        raise UsageError(f"There is no image file {missing[0]!r}.")
    try:
        operations = parse_augment(pack.eval_augment)
    except DataError as error:
        raise UsageError(str(error)) from error
    bank, status = None, 0
    for start in range(0, len(options.images), options.batch_size):
        images = {}
        for path in options.images[start : start + options.batch_size]:
            try:
                images[path] = _read_prepared(path, operations, pack)
            except DataError as error:
                status = 2
                _complain(options.command, str(error))
        if not images:
            continue
        bank = bank or _load_bank(pack, base)
        scores = bank.predict(list(images.values()), task=pack.task, batch_size=options.batch_size)
        for path, probabilities in zip(images, scores, strict=True):
            print(path)
            # Of equal probabilities the first class comes first, as in the errors.
            for place in (-probabilities).argsort(kind="stable")[: options.top_k]:
                print(f"  {100 * probabilities[place]:6.2f} %  {pack.class_names[place]}")
    return status


def _read_prepared(path: str, operations: list["Operation"], pack: TaskPack) -> "np.ndarray":
    from piggyback_tf.data import DataError, read_image

    image = read_image(path)
    try:
        for operation in operations:
            image = operation.apply(image)
    except DataError as error:
        raise DataError(f"Image {path!r} cannot be prepared: {error}") from error
    _check_size(image.shape[:2], pack)
    return image


# ------------------------------------------------------------------------------------------------------------- bases


def _choose_base(pack: TaskPack, options: argparse.Namespace) -> tuple[str, str]:
    """Returns name and weights of the base, checked as far as that goes without TensorFlow."""
    from piggyback_tf.backbones.registry import get_entry, list_backbones

    name = options.backbone or pack.base_name
    if options.backbone is None and name not in list_backbones():
        raise UsageError(
            f"Task {pack.task!r} was trained on {name!r}, a base of its own that cannot be loaded by its name; "
            "use it from Python: piggyback_tf.TaskBank(Backbone.from_model(model)).add(pack)."
        )
    try:
        entry = get_entry(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    weights = options.weights
    if weights is None:
        weights = pack.base_weights
        if weights not in entry.weights:
            raise UsageError(
                f"Task {pack.task!r} was trained on weights from the file {weights!r}; say where it is: --weights=PATH."
            )
    elif weights not in entry.weights and not Path(weights).is_file():
        raise UsageError(
            f"--weights={weights}: there is no such file, and {name!r} has no weights of this name. "
            f"Valid: {', '.join(entry.weights)}, or the path of a file."
        )
    return name, weights


def _load_bank(pack: TaskPack, base: tuple[str, str]) -> "TaskBank":
    """Loads the base and puts the task on it; the bank refuses a base with another hash."""
    _load_tensorflow()
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.packs import TaskBank

    name, weights = base
    # Random weights are those of a training with the same seed.
    seed = pack.settings.get("seed", 0) if weights == "random" else 0
    try:
        backbone = load_backbone(name, weights=weights, image_size=pack.image_size, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return TaskBank(backbone).add(pack)


def _check_size(size: tuple[int, ...], pack: TaskPack) -> None:
    if tuple(size) != (pack.image_size, pack.image_size):
        raise UsageError(
            f"The pack's augmentation {pack.eval_augment!r} gives images of {size[0]}x{size[1]} pixels, and its base "
            f"takes {pack.image_size}x{pack.image_size}."
        )


def _load_tensorflow() -> Any:
    """Imports TensorFlow without the lines that it writes about itself; any other line of it is passed on."""
    with _filtered_stderr():
        import tensorflow as tf

        # The search for GPUs writes to stderr as well.
        tf.config.list_physical_devices()
    return tf


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    # TensorFlow's C++ writes to the file descriptor, past `sys.stderr`.
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as capture:
        os.dup2(capture.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            capture.seek(0)
            for line in capture.read().decode(errors="backslashreplace").splitlines():
                if not _CHATTER.match(line):
                    print(line, file=sys.stderr)


def _complain(command: str, message: str) -> None:
    print(f"{PROGRAM} {command}: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
