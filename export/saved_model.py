"""One base and any number of tasks as one SavedModel for TensorFlow Serving."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
from absl import flags, logging

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.commands.common import UsageError
from piggyback_tf.commands.program import Program
from piggyback_tf.flags import ESSENTIALS, define, define_base_flags, define_config_flags, read_config
from piggyback_tf.packs import BaseSpec, TaskPack
from piggyback_tf.packs.find import find_packs

from .base import load_base_of
from .deployment.additions import carry_over
from .packs import NO_TASKS, PackSource, fitting_packs
from .servable.cache import choose_cache
from .servable.folder import (
    NETWORK,
    ExportError,
    find_version,
    is_version,
    new_version,
    next_version,
    read_export,
    share_variables,
    write_description,
)
from .servable.layout import Layout
from .servable.network import ExportedBase, save_network
from .servable.options import ExportOptions
from .servable.resize import check_preparation
from .servable.signatures import Servable
from .servable.tables import TaskTables
from .servable.with_mask import WithMask

FLAGS = flags.FLAGS
_TEXT = """One base and any number of tasks as one SavedModel for TensorFlow Serving.

    {call} --packs=a.task.safetensors,b.task.safetensors --output=DIR
    {call} --add_to=DIR/3 --packs=c.task.safetensors

The first writes `DIR/1` (or the version after the highest that is there), a SavedModel with the signatures
`serving_default`, `by_name` and `encoded`, and beside it `DIR/with_mask/1`, with `with_mask` and `tasks`. The second
writes `DIR/4` from `DIR/3` and the new packs alone; neither the backbone's weights nor the old packs are needed.
"""


def export_saved_model(
    backbone: Backbone,
    packs: Iterable[PackSource],
    output: str | os.PathLike,
    options: ExportOptions | None = None,
    *,
    version: int | None = None,
) -> Path:
    """Writes a base and tasks as a SavedModel, whole or not at all.

    Args:
        backbone: The base; not changed.
        packs: Packs for this base, their files or URLs, in the order of the tasks' numbers.
        output: The export's folder.
        options: What can be chosen; `ExportOptions()` if None.
        version: The version to write; if None the one after the highest that is there.

    Returns:
        The folder of the version.

    Raises:
        PackError: If a pack is for another base, or two tasks have one name.
        DataError: If the images of a task cannot be prepared within a graph.
        ExportError: If there are no packs, or the version is there already.
        ValueError: If the base cannot be exported, or what it takes is more than the limit of memory.
        OSError: If the files cannot be written.
    """
    layout, spec = Layout.of(backbone), BaseSpec.of(backbone)
    arrays = {path: variable.numpy() for path, variable in named_variables(backbone.model).items()}
    kernels, norm, rest = (part.flatten(arrays) for part in (layout.kernels, layout.norm, layout.rest))

    def write_network(folder: Path) -> ExportedBase:
        save_network(backbone, layout, folder)
        return ExportedBase(spec, layout, tf.saved_model.load(str(folder)).features, kernels, rest)

    tables = TaskTables.empty(layout, norm)
    tables = tables.with_tasks(_checked(packs, spec, tables), layout)
    return _write(write_network, spec, layout, tables, Path(output), options or ExportOptions(), version)


def add_tasks(
    source: str | os.PathLike,
    packs: Iterable[PackSource],
    output: str | os.PathLike | None = None,
    *,
    version: int | None = None,
    **changes: Any,
) -> Path:
    """Writes an export with more tasks, from an export and the new packs alone.

    Args:
        source: The folder of an export's version, which is not changed; of its folder the highest version is taken.
        packs: Packs for the same base, their files or URLs; their numbers follow those of the old tasks.
        output: The new export's folder; that of `source` if None.
        version: As in `export_saved_model`.
        **changes: Fields of `ExportOptions` that are not to be as in `source`.

    Returns:
        The folder of the version.

    Raises:
        ExportError: If `source` is no export, or as in `export_saved_model`.
        PackError, DataError, ValueError, OSError: As in `export_saved_model`.
    """
    # The number before the source: of two that add tasks at a time the later one finds its number taken, and does not
    # write a version that lacks the tasks of the other.
    path = Path(source)
    # Of these the folder above is not a part.
    path = path.resolve() if path.name in ("", "..") else path
    output = (path.parent if is_version(path) else path) if output is None else Path(output)
    version = next_version(output) if version is None else version
    source = find_version(path)
    base, tables, options = read_export(source)

    def copy_network(folder: Path) -> ExportedBase:
        shutil.copytree(source / NETWORK, folder)
        return base

    tables = tables.with_tasks(_checked(packs, base.spec, tables), base.layout)
    options = dataclasses.replace(options, **changes)
    return _write(copy_network, base.spec, base.layout, tables, output, options, version, source)


def _checked(packs: Iterable[PackSource], spec: BaseSpec, tables: TaskTables) -> Iterable[TaskPack]:
    """Yields packs that fit the base and can be served beside the tasks that are there, one in memory at a time."""
    for pack in fitting_packs(packs, spec, [name.decode() for name in tables.names]):
        check_preparation(pack.eval_augment, pack.image_size)
        yield pack


def _write(
    make_base: Callable[[Path], ExportedBase],
    spec: BaseSpec,
    layout: Layout,
    tables: TaskTables,
    output: Path,
    options: ExportOptions,
    version: int | None,
    source: Path | None = None,
) -> Path:
    """Writes both servables.

    Args:
        make_base: Puts the network's graph into a folder and returns the base over it.
        spec, layout, tables, output, options: What is written, and where.
        version: The version; if None the next one.
        source: The version that tasks are added to, if there is one.
    """
    if not len(tables.names):
        raise ExportError(NO_TASKS)
    kernels = choose_cache(options.cache, options.memory_limit, layout, tables)
    version = next_version(output) if version is None else version
    try:
        with new_version(output, version) as (first, second):
            network = first.parent / "network"
            base = make_base(network)
            servable = Servable(base, tables, options, unpacked=kernels == "unpacked")
            with_mask = WithMask(base, tables, options)
            for module, folder in ((servable, first), (with_mask, second)):
                tf.saved_model.save(module, str(folder), signatures=module.signatures())
            share_variables(first, second)
            write_description(first, spec, layout, tables, dataclasses.asdict(options), kernels)
            network.rename(first / NETWORK)
            if source is not None:
                carry_over(source, first, second)
    except tf.errors.OpError as error:
        # What TensorFlow raises where Python raises OSError, such as on a full disk.
        raise ExportError(f"{str(output)!r} cannot be written: {error.message}") from error
    return output / str(version)


def define_flags() -> None:
    """Defines the flags of the command."""
    text = flags.DEFINE_string
    define(flags.DEFINE_list, "packs", None, "Packs: files, URLs, folders or glob patterns.", ESSENTIALS)
    define(text, "output", None, "Folder of the export; with --add_to by default that of the old export.", ESSENTIALS)
    define(text, "add_to", None, "Version of an export, or its folder, that the packs are added to.", ESSENTIALS)
    define_config_flags(ExportOptions)
    version = "Version to write; by default that after the highest one."
    define(flags.DEFINE_integer, "version", None, version, "Settings", lower_bound=1)
    define_base_flags()


def run() -> Path:
    """Does what the flags say and returns the folder of the version."""
    files = find_packs(FLAGS.packs)
    if FLAGS.add_to is not None:
        # Only what was given on the command line is changed.
        fields = (field.name for field in dataclasses.fields(ExportOptions))
        changes = {name: FLAGS[name].value for name in fields if FLAGS[name].present}
        return add_tasks(FLAGS.add_to, files, FLAGS.output, version=FLAGS.version, **changes)
    if FLAGS.output is None:
        raise UsageError("--output is missing: the folder of the export.")
    options = read_config(ExportOptions)
    backbone = load_base_of(TaskPack.load(files[0]), FLAGS.backbone, FLAGS.weights)
    return export_saved_model(backbone, files, FLAGS.output, options, version=FLAGS.version)


def _run(arguments: list[str]) -> None:
    del arguments
    # Only what goes wrong is said, and the folder.
    tf.get_logger().setLevel("WARNING")
    logging.set_verbosity(logging.WARNING)
    print(run())


PROGRAM = Program(_TEXT, define_flags, _run, required=("packs",), errors=(ExportError,))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
