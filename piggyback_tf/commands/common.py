"""What several commands need: errors, arguments, and the base that a pack belongs to."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.commands.answers import UsageError, program_name
from piggyback_tf.file_names import PACK_SUFFIX
from piggyback_tf.files import check_target, check_writable, is_empty, with_home
from piggyback_tf.foreign_text import some
from piggyback_tf.packs import TaskPack
from piggyback_tf.packs.container import LARGEST_FILE
from piggyback_tf.quiet import load_tensorflow
from piggyback_tf.remote import is_url, local_input, read_bytes

if TYPE_CHECKING:
    from piggyback_tf.backbones import Backbone
    from piggyback_tf.packs import TaskBank

PACK_HELP = "file of a task (.task.safetensors), or the URL of one, such as hf://OWNER/NAME/birds.task.safetensors"


def complain(command: str, message: str) -> None:
    """Writes an error to stderr."""
    print(f"{program_name()} {command}: {message}", file=sys.stderr)


def load_pack(path: str) -> tuple[TaskPack, bytes]:
    """Returns a pack and the content of its file.

    Raises:
        PackError: If the file is no good pack.
        OSError: If the file cannot be read.
    """
    if is_url(path):
        data = read_bytes(path, LARGEST_FILE)
        return TaskPack.from_bytes(data, path), data
    # Not from its bytes: of a large file that is no pack, only the start is read.
    return TaskPack.load(path), Path(path).read_bytes()


def file_error(path: str, error: Exception) -> str:
    """Returns the sentence for an error that belongs to one of several files."""
    if not is_url(path) and Path(path).is_dir():
        packs = sorted(str(pack) for pack in Path(path).glob(f"*{PACK_SUFFIX}"))
        inside = f"Its packs are {some(packs, form=repr)}." if packs else "It has no packs."
        return f"{path!r} is a folder, and one file is asked for. {inside}"
    return f"{path!r}: {error.strerror}." if isinstance(error, OSError) and error.strerror else str(error)


def add_output(command: argparse.ArgumentParser, help: str, **options: Any) -> None:
    """Declares `--output` and `--overwrite` of a command that writes a file; `check_new_output` reads them."""
    command.add_argument("--output", type=with_home, metavar="FILE", help=help, **options)
    command.add_argument("--overwrite", action="store_true", help="replace a file that is there already")


def check_new_output(options: argparse.Namespace) -> None:
    """Raises a `UsageError` as `check_output` does, and if a file is there that nobody said may be replaced."""
    check_output(options.output)
    if not options.overwrite and not is_url(options.output) and Path(options.output).exists():
        raise UsageError(
            f"--output={options.output}: this file is there already. Name another one, or replace it with --overwrite."
        )


def check_output(path: str) -> None:
    """Raises a `UsageError` if a file cannot be written, as far as that can be seen before."""
    if is_url(path):
        return
    if not path:
        raise UsageError(f"{is_empty('--output=')} Name a file.")
    if Path(path).is_dir():
        raise UsageError(f"--output={path}: this is a folder; name a file in it.")
    check_folder_above(Path(path), "--output=")
    check_target(path)
    check_writable(Path(path).parent)


def check_folder_above(path: Path, option: str) -> None:
    """Raises a `UsageError` if the folder is not there in which somebody wants a file or a folder to be made."""
    if not path.resolve().parent.is_dir():
        raise UsageError(f"{option}{path}: there is no folder {str(path.parent)!r}.")


def add_base_options(command: argparse.ArgumentParser) -> None:
    """Declares the arguments of a command that loads a base; `choose_base` reads them."""
    command.add_argument(
        "--backbone",
        metavar="NAME",
        help="the base: a name, or the .keras file or URL of your own network; default: the one that the pack names",
    )
    command.add_argument(
        "--weights",
        metavar="WEIGHTS",
        help="the base's weights: imagenet, random, shipped, hf://OWNER/NAME, or a file or URL; default: those that "
        "the pack names. Needed if they came from a file, since a pack does not record its folder",
    )


def add_batch_size(command: argparse.ArgumentParser) -> None:
    """Declares the argument of a command that sends images through a network."""
    command.add_argument("--batch_size", type=positive, default=32, metavar="N", help="images per batch; default: 32")


def share_of_cores(jobs: int) -> int | None:
    """Returns with how many threads each of several processes computes; None for one by itself: TensorFlow decides."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs) if jobs > 1 else None


def positive(text: str) -> int:
    """Converts an argument to an integer of at least 1, for `add_argument`'s `type`."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, not {text!r}")
    return value


def prepare_for(spec: str, data_dir: str | None) -> None:
    """Loads TensorFlow, quietly, if reading data of a spec would load it with all that it says of itself.

    Raises:
        DataError: If the data are not where `data_dir` says, which is seen without it.
    """
    if spec.startswith("tfds:"):
        from piggyback_tf.data.specs import read_data_dir

        read_data_dir(spec, data_dir)
        load_tensorflow()


def choose_base(pack: TaskPack, backbone: str | None, weights: str | None) -> tuple[str, str]:
    """Returns name and weights of the base, checked as far as that goes without TensorFlow.

    Args:
        pack: The task.
        backbone: Name of the base; that in the pack if None.
        weights: Its weights; those that the pack names if None.

    Raises:
        UsageError: If the base, or its weights, cannot be found.
    """
    from piggyback_tf.backbones.own import GIVEN, is_model_file
    from piggyback_tf.backbones.registry import check_request, get_entry, list_backbones
    from piggyback_tf.backbones.tensor_files import is_repository

    name = backbone or pack.base_name
    if backbone is None and name not in list_backbones():
        if is_model_file(name):
            raise UsageError(
                f"Task {pack.task!r} was trained on the network in the file {name!r}; say where it is: --backbone=PATH."
            )
        raise UsageError(
            f"Task {pack.task!r} was trained on {name!r}, a base of its own that cannot be loaded by its name. Save "
            "it, model.save('PATH.keras'), and pass --backbone=PATH.keras; or use it from Python: "
            "piggyback_tf.TaskBank(Backbone.from_model(model)).add(pack)."
        )
    try:
        if is_model_file(name):
            if not is_url(name):
                check_request(name, weights, pack.image_size)
            return name, weights or GIVEN
        entry = get_entry(name)
    except ValueError as error:
        raise UsageError(str(error)) from error
    weights = None if weights is None else with_home(weights)
    if weights is None:
        weights = pack.base_weights
        if weights not in entry.weights and not is_repository(weights):
            raise UsageError(
                f"Task {pack.task!r} was trained on weights from the file {weights!r}; say where it is: --weights=PATH."
            )
    elif weights not in entry.weights and not is_url(weights) and not Path(weights).is_file():
        raise UsageError(
            f"--weights={weights}: there is no such file, and {name!r} has no weights of this name. "
            f"Valid: {', '.join(entry.weights)}, or the path of a file."
        )
    if is_repository(weights) or (weights not in entry.weights and not is_url(weights)):
        try:
            check_request(name, weights, pack.image_size)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return name, weights


def seed_of(pack: TaskPack) -> int:
    """Returns the seed that a pack says it was trained with, 0 if it says none.

    Raises:
        UsageError: If it is no number: settings are whatever somebody wrote into the file.
    """
    seed = pack.settings.get("seed", 0)
    if type(seed) is not int:
        raise UsageError(f"The pack's settings have a seed that is no integer: {seed!r}.")
    return seed


def deciding_task(packs: Iterable[TaskPack]) -> TaskPack:
    """Returns the task that decides for which size of images a base is loaded that all of them share.

    That is the first whose images have the base's size. Label maps and boxes have sizes of their own, and fit a base of
    any size; if there are no other tasks, it is the first of them.
    """
    first: TaskPack | None = None
    for pack in packs:
        if pack.head_spec is not None and pack.head_spec.image_shape is None:
            return pack
        first = first or pack
    assert first is not None
    return first


def load_base(pack: TaskPack, base: tuple[str, str], image_size: int | None = None) -> "Backbone":
    """Loads the base that `choose_base` found.

    Args:
        pack: The `deciding_task`.
        base: What `choose_base` found.
        image_size: For which size of images it is loaded; the task's if None.

    Raises:
        UsageError: If its weights cannot be loaded.
        RemoteError: If its weights are given by a URL and cannot be read.
    """
    load_tensorflow()
    from piggyback_tf.backbones import load_backbone
    from piggyback_tf.backbones.tensor_files import is_repository

    name, weights = base
    # Random weights are those of a training with the same seed.
    seed = seed_of(pack) if weights == "random" else 0
    # A repository is no file, and its files have a cache.
    found: contextlib.AbstractContextManager[str] = (
        contextlib.nullcontext(weights) if is_repository(weights) else local_input(weights)
    )
    with found as local, local_input(name) as network:
        try:
            return load_backbone(network, weights=local, image_size=image_size or pack.image_size, seed=seed)
        except ValueError as error:
            raise UsageError(str(error).replace(local, weights).replace(network, name)) from error


def load_bank(pack: TaskPack, base: tuple[str, str]) -> "TaskBank":
    """Loads the base and puts the task on it.

    Raises:
        UsageError: If the base's weights cannot be loaded, or it cannot run on images as large as the pack says.
        PackError: If the base has another hash than that of the pack.
    """
    from piggyback_tf.data.operations import MAX_SIDE

    height, width = pack.image_shape
    size = f"Task {pack.task!r} takes images of {height:,}x{width:,} pixels"
    # A pack may come from a stranger, and the base runs once when the bank is made.
    if max(height, width, pack.image_size) > MAX_SIDE:
        raise UsageError(f"{size}; this command works with at most {MAX_SIDE:,}.")
    backbone = load_base(pack, base)
    import tensorflow as tf

    from piggyback_tf.packs import TaskBank

    try:
        return TaskBank(backbone).add(pack)
    except tf.errors.ResourceExhaustedError as error:
        raise UsageError(f"{size}, for which its base takes more memory than there is.") from error
