"""Writes a SavedModel of a base and its tasks, and one that adds tasks to it."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.packs import BaseSpec, TaskPack

from ..shared.errors import ExportError, reason_of
from ..shared.packs import PackSource, fitting_packs
from .additions import carry_over
from .folder import (
    HEADS,
    NETWORK,
    find_version,
    is_version,
    link_variables,
    new_version,
    next_version,
    write_description,
)
from .heads import HeadNetworks
from .layout import WeightLayout
from .network import ServedNetwork, save_network
from .options import ExportOptions
from .preparation import check_preparation
from .problem_signatures import check_is_served, shape_of_images
from .read import read_export
from .signatures import Servable
from .task_tables import TaskTables, family_of
from .unpacked_kernels import choose_cache
from .with_mask import WithMask


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
        ExportError: If there are no packs, one is of a problem that cannot be served, or the version is there already.
        ValueError: If the base cannot be exported, or what it takes is more than the limit of memory.
        OSError: If the files cannot be written.
    """
    layout, spec = WeightLayout.of(backbone), BaseSpec.of(backbone)
    arrays = {path: variable.numpy() for path, variable in named_variables(backbone.model).items()}
    kernels, norm, rest = (part.flatten(arrays) for part in (layout.kernels, layout.norm, layout.rest))

    def write_network(folder: Path) -> ServedNetwork:
        save_network(backbone, layout, folder / NETWORK.name)
        features = tf.saved_model.load(str(folder / NETWORK.name)).features
        written = heads.write(tables.head_specs, layout, folder / HEADS.name)
        return ServedNetwork(spec, layout, features, kernels, rest, written)

    tables, heads = TaskTables.empty(layout, norm), HeadNetworks(spec, lambda _: backbone)
    tables = tables.with_tasks(_checked(packs, spec, tables, heads), layout, rest)
    return _write(write_network, spec, layout, tables, Path(output), options or ExportOptions(), version)


def add_tasks(
    source: str | os.PathLike,
    packs: Iterable[PackSource],
    output: str | os.PathLike | None = None,
    *,
    version: int | None = None,
    backbone: Backbone | Callable[[TaskPack], Backbone] | None = None,
    **changes: Any,
) -> Path:
    """Writes an export with more tasks, from an export and the new packs alone.

    Of a task whose head is more than a layer on the features the network is a part of the export. If no task of the
    export has the same kind of head for images of the same size, the base is needed to make it.

    Args:
        source: The folder of an export's version, which is not changed; of its folder the highest version is taken.
        packs: Packs for the same base, their files or URLs; their numbers follow those of the old tasks.
        output: The new export's folder; that of `source` if None.
        version: As in `export_saved_model`.
        backbone: The base, or what returns it for the first pack that needs it.
        **changes: Fields of `ExportOptions` that are not to be as in `source`.

    Returns:
        The folder of the version.

    Raises:
        ExportError: If `source` is no export, or as in `export_saved_model`; if the base is needed and is not given, or
            is another one.
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

    def copy_network(folder: Path) -> ServedNetwork:
        shutil.copytree(source / NETWORK, folder / NETWORK.name)
        written = heads.write(tables.head_specs, base.layout, folder / HEADS.name, source / HEADS)
        return dataclasses.replace(base, heads=written)

    find = backbone if backbone is None or not isinstance(backbone, Backbone) else lambda _: backbone
    heads = HeadNetworks(base.spec, find, base.heads)
    tables = tables.with_tasks(_checked(packs, base.spec, tables, heads), base.layout, base.rest)
    options = dataclasses.replace(options, **changes)
    return _write(copy_network, base.spec, base.layout, tables, output, options, version, source)


def _checked(
    packs: Iterable[PackSource], spec: BaseSpec, tables: TaskTables, heads: HeadNetworks
) -> Iterable[TaskPack]:
    """Yields packs that fit the base and can be served beside the tasks that are there, one in memory at a time."""
    for pack in fitting_packs(packs, spec, [name.decode() for name in tables.names], check=check_is_served):
        check_preparation(pack.eval_augment, shape_of_images(family_of(pack), spec.image_size))
        heads.check(pack)
        yield pack


def _write(
    make_base: Callable[[Path], ServedNetwork],
    spec: BaseSpec,
    layout: WeightLayout,
    tables: TaskTables,
    output: Path,
    options: ExportOptions,
    version: int | None,
    source: Path | None = None,
) -> Path:
    """Writes both servables.

    Args:
        make_base: Puts the graphs of the base's networks into a folder, under their names in an export, and returns the
            base over them.
        spec, layout, tables, output, options: What is written, and where.
        version: The version; if None the next one.
        source: The version that tasks are added to, if there is one.
    """
    kernels = choose_cache(options.cache, options.memory_limit, layout, tables)
    version = next_version(output) if version is None else version
    try:
        with new_version(output, version) as (first, second):
            networks = first.parent / "networks"
            base = make_base(networks)
            servable = Servable(base, tables, options, unpacked=kernels == "unpacked")
            with_mask = WithMask(base, tables, options)
            for module, folder in ((servable, first), (with_mask, second)):
                tf.saved_model.save(module, str(folder), signatures=module.signatures())
            link_variables(first, second)
            heads = [{"head": head.to_json(), **base.heads[head].to_json()} for head in tables.head_specs]
            write_description(first, spec, layout, tables, dataclasses.asdict(options), kernels, heads)
            for name in (NETWORK, HEADS):
                if (networks / name.name).is_dir():
                    (networks / name.name).rename(first / name)
            networks.rmdir()
            if source is not None:
                carry_over(source, first, second)
    except tf.errors.OpError as error:
        # What TensorFlow raises where Python raises OSError, such as on a full disk.
        raise ExportError(f"{str(output)!r} cannot be written: {reason_of(error.message)}.") from error
    return output / str(version)
