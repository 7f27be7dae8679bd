"""Writes a base.tflite, and for each task a file by which its constants are changed on the device."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.structure_record import Structure, check_same_computation
from piggyback_tf.data import images as images_module
from piggyback_tf.files import make_folder, write_atomically
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import BaseSpec, TaskBank, TaskPack
from piggyback_tf.packs.base_fit import check_same_weights

from ...edge import piggyback_edge
from ...edge.piggyback_edge import Base, EdgeError, Manifest, Model, Task
from ...shared.errors import ExportError
from ...shared.packs import PackSource, fitting_packs
from ..flatbuffer import LiteFile
from ..folder import (
    BASE_FILE,
    IMAGES_FILE,
    MANIFEST_FILE,
    MANIFEST_JSON,
    TASK_SUFFIX,
    new_folder,
    refuse_other_task,
)
from ..image_size import image_size_of
from ..kinds import GraphKind, check_answer, check_room, dense_kind, kinds_of
from ..options import LiteOptions
from ..representative_images import representative_images, split_specs
from ..weights import Network, Weights, own_weights
from .calibrate import Saturation, corresponding, find_ranges, find_saturation
from .checks import check_base, check_task
from .manifest import manifest_bytes, manifest_json
from .patchable import Graph, Patchable, constants_from_json, make_float_file
from .replaced import described_replaced, replaced_constants
from .task_file import task_bytes
from .tasks import composed_kernels, make_task
from .widening import widening_of_file


@dataclasses.dataclass(frozen=True)
class Added:
    """What `add_patches` wrote of a task.

    Attributes:
        path: The task's file.
        quantize: The base's quantisation.
        saturation: Activations that the int8 ranges of the base do not hold; None if they were not looked at, since the
            base is not int8 or there were no images.
    """

    path: Path
    quantize: str
    saturation: list[Saturation] | None


def export_patch(backbone: Backbone, packs: Sequence[PackSource], output: Path, options: LiteOptions) -> Path:
    """Writes `base.tflite`, its manifest and a file for each task.

    Args:
        backbone: The base; not changed.
        packs: Packs for this base, or their files.
        output: The folder, which must not be there, or be empty.
        options: What can be chosen.

    Returns:
        The folder.

    Raises:
        PackError: If a pack is for another base, or two tasks have one name.
        ExportError: If something cannot work: the message says what and why.
        DataError: If the images for int8 cannot be read.
        ValueError: If what conversion makes of the base cannot be patched.
        OSError: If the files cannot be written.
    """
    tasks = list(fitting_packs(packs, BaseSpec.of(backbone), check=check_answer))
    kinds = kinds_of(tasks, backbone, options.max_classes)
    for pack in tasks:
        check_room(pack, kinds)
    vectors, rescaled = replaced_constants(tasks, options.quantize, backbone)
    networks = [Network.of(backbone, kind, vectors, rescaled) for kind in kinds]
    with new_folder(Path(output)) as folder:
        images = []
        if options.quantize == "int8":
            images = representative_images(options.representative_data, tasks, options.representative_images)
        base = Patchable.make(
            backbone,
            networks,
            options.quantize,
            lambda network: _with_images(network, tasks, images),
            lambda network: _unmasked(network, tasks),
        )
        check_base(base, backbone)
        device = Base(bytes(base.file.data), base.manifest)
        model = Model(device)
        shutil.copyfile(piggyback_edge.__file__, folder / Path(piggyback_edge.__file__).name)
        shutil.copyfile(images_module.__file__, folder / IMAGES_FILE)
        (folder / BASE_FILE).write_bytes(device.data)
        content = manifest_bytes(base.manifest)
        Manifest.from_bytes(content, MANIFEST_FILE)
        (folder / MANIFEST_FILE).write_bytes(content)
        about = {"base": backbone.name, "weights": backbone.weights, "preprocessing": backbone.preprocessing}
        about |= backbone.structure.to_json()
        if base.manifest.graphs:
            about["signatures"] = [
                {"name": kind.signature, "images": list(kind.image_shape), "head": dataclasses.asdict(kind.head)}
                for kind in kinds
            ]
        document = manifest_json(base.manifest, [slot.to_json() for slot in base.slots], about)
        (folder / MANIFEST_JSON).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        bank = TaskBank(backbone)
        for pack in tasks:
            content = _task_content(base, model, bank, pack, options)
            (folder / f"{pack.task}{TASK_SUFFIX}").write_bytes(content)
    return Path(output)


def add_patches(
    backbone: Backbone, packs: Sequence[PackSource], base_file: Path, output: Path | None, options: LiteOptions
) -> list[Added]:
    """Writes the files of new tasks for a base that devices have; all of them are checked before the first is written.

    Args:
        backbone: The base.
        packs: The tasks' packs, or their files.
        base_file: `base.tflite`, with its two manifests beside it; none of them is changed.
        output: The folder of the new files; that of the base if None.
        options: `compress`, `representative_data` and `representative_images` are looked at.

    Raises:
        As `export_patch`, and ExportError if the base is another one, its manifest is damaged, or another task of the
            same name is in the folder.
    """
    base = read_base(backbone, base_file)
    if options.representative_data and base.manifest.quantize != "int8":
        raise ExportError(
            f"--representative_data is for bases of int8; leave it out: the quantisation of {str(base_file)!r} is "
            f"{base.manifest.quantize!r}."
        )
    tasks = list(fitting_packs(packs, BaseSpec.of(backbone), check=check_answer))
    for pack in tasks:
        base.graph_of(pack)
    specs = split_specs(options.representative_data, len(tasks))
    model, bank = Model(Base(bytes(base.file.data), base.manifest, verify=False)), TaskBank(backbone)
    folder, contents, added = base_file.parent if output is None else Path(output), [], []
    for task, spec in zip(tasks, specs, strict=True):
        content = _task_content(base, model, bank, task, options)
        saturation = None
        if spec:
            images = representative_images(spec, [task], options.representative_images)
            saturation = _saturation(base, backbone, task, images)
        contents.append(content)
        added.append(Added(folder / f"{task.task}{TASK_SUFFIX}", base.manifest.quantize, saturation))
    make_folder(folder)
    for written, content in zip(added, contents, strict=True):
        refuse_other_task(written.path, functools.partial(_holds, written.path, content, base.manifest))
    for written, content in zip(added, contents, strict=True):
        write_atomically(written.path, content)
    return added


def read_base(backbone: Backbone, base_file: Path) -> Patchable:
    """Reads what `export_patch` wrote of a base.

    Raises:
        ExportError: If it is damaged, or made of another base than `backbone`.
    """
    try:
        manifest = Manifest.load(base_file.parent / MANIFEST_FILE)
        device = Base(base_file.read_bytes(), manifest, name=str(base_file))
    except EdgeError as error:
        raise ExportError(str(error)) from error
    check_same_weights(f"{str(base_file)!r} was made of", manifest.base_hash.hex(), backbone, ExportError)
    if (size := image_size_of(base_file)) not in (None, backbone.image_size):
        raise ExportError(
            f"{str(base_file)!r} was made of a base for images of {size} pixels, and this base is for images of "
            f"{backbone.image_size}. Load it with image_size={size}."
        )
    file = LiteFile(device.data)
    try:
        document = json.loads((base_file.parent / MANIFEST_JSON).read_text(encoding="utf-8"))
        if document["base_sha256"] != manifest.base_sha256.hex():
            raise ExportError(f"{MANIFEST_JSON} beside {str(base_file)!r} is of another base.")
        graphs = []
        for number, kind in enumerate(_kinds(document, manifest, backbone)):
            network = Network.of(backbone, kind, *described_replaced(document["constants"]))
            own = file.with_graph(number) if number else file
            graph = Graph.of(network, own, constants_from_json(document["constants"], own, network, number))
            graphs.append(dataclasses.replace(graph, widening=widening_of_file(graph.encoder)))
        structure = Structure.from_json(document)
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{MANIFEST_JSON} beside {str(base_file)!r} is damaged: {error!r}.") from error
    check_same_computation(repr(str(base_file)), structure, backbone.structure, ExportError)
    base = Patchable.of(graphs, backbone, manifest.quantize)
    if base.manifest != manifest:
        raise ExportError(f"{MANIFEST_JSON} beside {str(base_file)!r} does not fit {MANIFEST_FILE}.")
    return base


def _kinds(document: dict[str, Any], manifest: Manifest, backbone: Backbone) -> list[GraphKind]:
    """Returns the kinds of tasks that a base answers.

    Raises:
        KeyError, TypeError, ValueError: If `manifest.json` is damaged.
    """
    if not manifest.graphs:
        return [dense_kind(backbone, manifest.max_classes)]
    kinds = []
    for entry in document["signatures"]:
        shape = entry["head"]["image_shape"]
        head = HeadSpec(**{**entry["head"], "image_shape": tuple(shape) if shape else None})
        kinds.append(GraphKind.of(head, backbone))
    return kinds


def _task_content(base: Patchable, model: Model, bank: TaskBank, pack: TaskPack, options: LiteOptions) -> bytes:
    """Returns the content of a task's file, by which `model` was changed and answers as the bank does."""
    content = task_bytes(make_task(base, pack), base.manifest, compress=options.compress)
    model.install(Task.from_bytes(content, base.manifest, pack.task))
    check_task(base, model, bank, pack)
    return content


def _holds(path: Path, content: bytes, manifest: Manifest) -> bool:
    """Returns whether a file of a task holds the same as this content, compressed or not."""
    return Task.load(path, manifest).digest == Task.from_bytes(content, manifest).digest


def _saturation(base: Patchable, backbone: Backbone, pack: TaskPack, images: list[np.ndarray]) -> list[Saturation]:
    """Returns the activations of a task that the ranges of an int8 base do not hold."""
    graph = base.graphs[base.graph_of(pack)]
    file, constants = make_float_file(backbone, graph.network, "none")
    pairs = corresponding(file, graph.file)
    ranges = find_ranges(file, constants, graph.network, _with_images(graph.network, [pack], images))
    return find_saturation(graph.file, pairs, ranges)


def _with_images(
    network: Network, packs: Sequence[TaskPack], images: Sequence[np.ndarray]
) -> Iterator[tuple[Weights, np.ndarray]]:
    """Yields for each task of a network's kind all its weights, and its images."""
    for pack, own in zip(packs, images, strict=True):
        if network.kind.takes(pack):
            yield own_weights(network, pack), own


def _unmasked(network: Network, packs: Sequence[TaskPack]) -> Iterator[tuple[Weights, frozenset[str]]]:
    """Yields for each task of a network's kind all its weights without masks, and the kernels that it composes.

    Tasks of nothing but masks are left out, since they have the base's scales and biases.
    """
    for pack in packs:
        if network.kind.takes(pack) and (pack.norm or pack.parts):
            yield own_weights(network, pack, masked=False), composed_kernels(pack)
