"""Data specs: `KIND:ARGUMENT`, as in `folder:PATH`, where each kind is a file in this folder that registers itself."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import logging

from piggyback_tf.data.images import DataError
from piggyback_tf.data.look import WithoutBroken
from piggyback_tf.data.sources import Source, TaskData, carve_validation
from piggyback_tf.data.unusable_files import DataProblems, UnusableFile
from piggyback_tf.files import PathError, local_path, protocol_of, same_look
from piggyback_tf.foreign_text import some
from piggyback_tf.registry import Registry, import_modules, unknown_name_message
from piggyback_tf.targets import TARGETS, USUAL


@dataclasses.dataclass(frozen=True)
class DataRequest:
    """What a data kind is asked for.

    Attributes:
        spec: The whole spec, `KIND:ARGUMENT`.
        argument: What stands behind the colon, possibly empty.
        data_dir: Where prepared data sets are, or `None`.
        val_fraction: The share of the training images that becomes the validation split where there is none.
        seed: Another seed, another validation split.
        skip_broken_images: Whether images that cannot be used are left out and counted instead of an error.
        cache_dir: The cache folder; `None` for the user's.
    """

    spec: str
    argument: str
    data_dir: str | None
    val_fraction: float
    seed: int
    skip_broken_images: bool
    cache_dir: str | None


Loader = Callable[[DataRequest], TaskData]


@dataclasses.dataclass(frozen=True)
class DataKind:
    """A kind of data.

    Attributes:
        load: Returns the data that are asked for.
        targets: What there can be to find in them, keys of `TARGETS`.
    """

    load: Loader
    targets: tuple[str, ...]


DATA_KINDS: Registry[DataKind] = Registry("data kind")


def register_data(kind: str, *, targets: Sequence[str] = tuple(TARGETS)) -> Callable[[Loader], Loader]:
    """Returns a decorator that makes a function of a `DataRequest` answer specs that start with `kind`.

    Args:
        kind: The name.
        targets: What there can be to find in such data, where that is known before they are read; anything by default.
    """

    def decorator(load: Loader) -> Loader:
        DATA_KINDS.register(kind)(DataKind(load, tuple(targets)))
        return load

    return decorator


def possible_targets(spec: str) -> tuple[str, ...]:
    """Returns what there can be to find in the data of a spec, which are not looked at; anything of an unknown kind."""
    kind = spec.partition(":")[0]
    return DATA_KINDS[kind].targets if kind in data_kinds() else tuple(TARGETS)


def path_and_options(request: DataRequest, names: Sequence[str], layout: str) -> tuple[str, dict[str, str]]:
    """Returns the path of a spec `KIND:PATH?NAME=VALUE&NAME=VALUE`, and what stands behind the `?`, by name.

    Args:
        request: What was asked for.
        names: What may stand there.
        layout: What is to be in the folder, a sentence for errors.

    Raises:
        DataError: If there is no path, or something else stands there.
    """
    path, _, query = request.argument.partition("?")
    if not path:
        kind = request.spec.partition(":")[0]
        raise DataError(
            f"The data spec must name a folder, as in '{kind}:/data/roads', but was {request.spec!r}. {layout}"
        )
    options: dict[str, str] = {}
    for item in query.split("&") if query else []:
        key, equals, value = item.partition("=")
        if key not in names or not equals or not value or key in options:
            parts = [f"{name}=" for name in names]
            valid = " and ".join([", ".join(parts[:-1]), *parts[-1:]]).removeprefix(" and ")
            may = f"may stand {valid}, each at most once" if names else "stands nothing for this kind of data"
            raise DataError(f"Cannot read {item!r} in the data spec {request.spec!r}. Behind the ? {may}.")
        options[key] = value
    return path, options


def data_kinds() -> list[str]:
    """Returns the names of all data kinds."""
    import_modules("piggyback_tf.data", [str(Path(__file__).parent)])
    return DATA_KINDS.names()


def task_of_splits(
    request: DataRequest,
    root: Path,
    class_names: tuple[str, ...],
    sources: Mapping[str, Source],
    problems: Mapping[str, Sequence[UnusableFile]] = MappingProxyType({}),
    target: str = USUAL,
) -> TaskData:
    """Returns the data of a folder; where there is no validation split, one is carved out of the training images.

    Args:
        request: What was asked for.
        root: The folder, by whose name the data are called.
        class_names: The classes.
        sources: The images of `"train"`, and those of `"validation"` and `"test"` where they are there.
        problems: As of `TaskData`.
        target: As of `TaskData`.

    Raises:
        DataError: If no validation split can be carved out.
    """
    train, validation = sources["train"], sources.get("validation")
    if validation is None:
        train, validation = carve_validation(train, request.val_fraction, request.seed, request.spec)
    name = root.resolve().name
    return TaskData(request.spec, name, class_names, train, validation, sources.get("test"), problems, target)


def load_data(
    spec: str,
    *,
    data_dir: str | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
    skip_broken_images: bool = False,
    cache_dir: str | None = None,
    raise_problems: bool = True,
) -> TaskData:
    """Finds the images of a task.

    Args:
        spec: One of
            `"folder:PATH"`: image files in `PATH/train/CLASS/`, optionally `PATH/val/` and `PATH/test/`;
            `"tfds:NAME"`: a data set of TensorFlow Datasets, optionally with its splits, as in
            `"tfds:oxford_flowers102?train=train+validation&test=test"`;
            `"segmentation:PATH"`: images with a label map each, see docs/segmentation.md;
            `"coco:PATH"` and `"voc:PATH"`: images with boxes, see docs/detection.md;
            `"multilabel:PATH"`: images of any number of classes, see docs/problems.md;
            `"digits"`: scikit-learn's handwritten digits; `"digits:0-4"`: those from 0 to 4.
        data_dir: Where TensorFlow Datasets keeps its data sets; `None` for its own default.
        val_fraction: The share of the training images, class by class, that becomes the validation
            split if the data set has none.
        seed: Another seed, another validation split.
        skip_broken_images: Leaves out what cannot be used (files that cannot be read, are empty, damaged, no images,
            or in no class folder) and names it in `Source.left_out`. The images of a split are then all decoded once
            before its first use.
        cache_dir: Where the results of long scans are kept; `None` for the user's cache folder.
        raise_problems: Whether files that are no images by their names or places are an error at once. Otherwise they
            are in `TaskData.problems`, for `check_images` to tell with all that shows in the pixels.

    Returns:
        The task's data. Images are read later, one by one; of the test split nothing is read yet.

    Raises:
        DataError: If the spec is wrong, or the data are not there or not as they must be.
        DataProblems: If files are no images by their names or places.
    """
    kind, _, argument = spec.partition(":")
    valid = data_kinds()
    if kind not in valid:
        raise DataError(_unknown_kind_message(spec, kind, valid))
    if not 0 < val_fraction < 1:
        raise DataError(f"val_fraction must lie between 0 and 1, both excluded, but is {val_fraction}.")
    data_dir = read_data_dir(spec, data_dir)
    request = DataRequest(spec, argument, data_dir, val_fraction, seed, skip_broken_images, cache_dir)
    data = DATA_KINDS[kind].load(request)
    _check_class_names(data)
    if skip_broken_images:
        return _without_broken(data, cache_dir)
    if raise_problems and (problems := [problem for found in data.problems.values() for problem in found]):
        raise DataProblems(problems, spec, flag="skip_broken_images=True")
    return data


def read_data_dir(spec: str, data_dir: str | None) -> str | None:
    """Returns the folder that `data_dir` names, without loading what reads it.

    Raises:
        DataError: If it is no folder of this machine, or the data are those of TensorFlow Datasets and it is not there.
    """
    if data_dir is None:
        return None
    try:
        folder = str(local_path(data_dir, "--data_dir="))
    except PathError as error:
        raise DataError(str(error)) from error
    kind, _, name = spec.partition(":")
    if kind == "tfds" and not Path(folder).is_dir():
        raise DataError(
            f"There is no folder {folder!r}, which --data_dir names for data set {name.partition('?')[0]!r}. Name the "
            "right one, or make it, if the data set is to be downloaded."
        )
    return folder


def _check_class_names(data: TaskData) -> None:
    """Refuses classes that nobody can tell apart by their names."""
    seen: dict[str, str] = {}
    for name in data.class_names:
        plain = same_look(name)
        if plain in seen:
            twice = f"{name!r} is there twice" if name == seen[plain] else f"{ascii(seen[plain])} and {ascii(name)}"
            raise DataError(f"Classes of {data.spec!r} have the same name: {twice}. Give each a name of its own.")
        seen[plain] = name


def _without_broken(data: TaskData, cache_dir: str | None) -> TaskData:
    """Returns the same data, whose sources leave out what cannot be used."""
    sources: dict[str, Any] = {}
    for split, source in data.splits.items():
        also = data.problems.get(split, ())
        if also:
            examples = some([problem.place for problem in also])
            logging.warning(
                "Left out of %s %s: %d, no images by name or place: %s.", data.spec, split, len(also), examples
            )
        classes = data.class_names if split == "train" else None
        sources[split] = WithoutBroken(source, f"{data.spec} {split}", cache_dir, classes, also)
    return dataclasses.replace(data, **sources, problems={})


def _unknown_kind_message(spec: str, kind: str, valid: list[str]) -> str:
    """Returns what is wrong with a spec of no kind that exists; most likely it is a path."""
    if protocol_of(spec):
        return f"The data spec {spec!r} is a URL. Copy the images to this machine, and name their folder: folder:PATH."
    if os.sep in kind or kind.startswith(("~", ".")) or Path(spec).is_dir():
        return f"The data spec {spec!r} has no kind. For the images of a folder write 'folder:{spec}'."
    return unknown_name_message("data kind", kind, valid) + f" The data spec was {spec!r}."
