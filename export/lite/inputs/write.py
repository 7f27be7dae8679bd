"""Writes a model that takes masks as inputs, and what tasks hand over to it."""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.structure_record import Structure, check_same_computation
from piggyback_tf.files import make_folder, write_atomically
from piggyback_tf.packs import BaseSpec, PackError, TaskBank, TaskPack
from piggyback_tf.packs.base_fit import check_same_weights

from ...shared.packs import PackSource, fitting_packs
from ..checks import check_answers, probe_images
from ..convert import convert_signatures
from ..flatbuffer import pack_objects, read_objects
from ..folder import new_folder, refuse_other_task
from ..kinds import check_is_dense
from ..metadata import add_metadata
from ..model_description import append_files, read_model_description
from ..options import LiteOptions
from .input_format import Changes
from .network import DeviceNetwork
from .run import load_model
from .signatures import MODULE_MAKERS
from .task_inputs import SUFFIX, TaskInputs

MODEL = "model.tflite"


def export_inputs(backbone: Backbone, packs: Iterable[PackSource], output: Path, options: LiteOptions) -> list[Path]:
    """Writes a model that takes masks as inputs, and a file with the inputs of each task.

    Args:
        backbone: The base; not changed.
        packs: The tasks, or their files. What none of them changes is a constant of the model.
        output: The folder, which must not be there, or be empty; it is written whole or not at all.
        options: The design, `switch` or `input`; `quantize`, none or float16; and `max_classes`, for how many classes
            the model has room, by default as many as the largest task has.

    Returns:
        The files: first the model, then those of the tasks.

    Raises:
        PackError: If a pack is for another base, has more classes than there is room for, or two tasks have one name.
        ExportError: If there are no packs, LiteRT's own operators cannot compute the network, or the model does not
            answer as the bank.
        ValueError: If a layer cannot be exported so.
        OSError: If the files cannot be written.
    """
    tasks = list(fitting_packs(packs, BaseSpec.of(backbone), check=check_is_dense))
    changes = Changes.of(tasks, options.max_classes or None)
    for pack in tasks:
        changes.check(pack)
    structure = backbone.structure
    network = DeviceNetwork(backbone, changes, structure.digest)
    model = convert_signatures(*MODULE_MAKERS[options.design](network), float16=options.quantize == "float16")
    description: dict[str, Any] = {"design": options.design, "quantize": options.quantize}
    description |= {"digest": network.format.digest(), "layout": network.format.to_json(), **structure.to_json()}
    objects = read_objects(model)
    add_metadata(objects, backbone.name, backbone.preprocessing)
    with new_folder(output) as folder:
        (folder / MODEL).write_bytes(pack_objects(objects))
        append_files(folder / MODEL, description)
        names = [MODEL, *_write_inputs(network, tasks, folder, folder / MODEL, backbone)]
    return [output / name for name in names]


def add_inputs(backbone: Backbone, packs: Iterable[PackSource], model: Path, output: Path | None = None) -> list[Path]:
    """Writes the inputs of more tasks for a model that is there; the model stays as it is.

    Args:
        backbone: The model's base; not changed.
        packs: The tasks, or their files.
        model: The model's file.
        output: The folder of the new files; that of the model if None.

    Returns:
        The files of the tasks.

    Raises:
        PackError: If it is no such model, the base is another one, or a task changes what is constant in it.
        ExportError: If there are no packs, or the model does not answer as the bank.
        OSError: If the files cannot be written.
    """
    found = read_model_description(model)
    tasks, layout = list(fitting_packs(packs, BaseSpec.of(backbone), check=check_is_dense)), found["layout"]
    check_same_weights(f"The model {str(model)!r} was made of", layout["base_hash"], backbone)
    check_same_computation(f"The model {str(model)!r}", Structure.from_json(found), backbone.structure, PackError)
    masked = frozenset(path for path, _ in layout["filters"])
    changes = Changes(masked, bool(layout["norms"]), layout["bits"], layout["classes"])
    for pack in tasks:
        changes.check(pack)
    network = DeviceNetwork(backbone, changes, layout.get("base_structure"))
    if network.format.digest() != found["digest"]:
        raise PackError(f"The model {str(model)!r} was written by another version of this package; export it anew.")
    folder = model.parent if output is None else output
    make_folder(folder)
    return [folder / name for name in _write_inputs(network, tasks, folder, model, backbone)]


def _write_inputs(
    network: DeviceNetwork, packs: Sequence[TaskPack], folder: Path, model: Path, backbone: Backbone
) -> list[str]:
    """Writes what tasks hand over, after comparing the model's answers with the bank's; returns the files' names."""
    format_, loaded, bank, contents = network.format, load_model(model), TaskBank(backbone), {}
    for pack in packs:
        inputs = TaskInputs.of(pack, network.mask_of(pack), network.norm_of(pack), format_.classes, format_.digest())
        loaded.set_task(inputs)
        check_answers(loaded.predict(probe_images((backbone.image_size,) * 2)), bank, pack, loaded.quantize)
        path = folder / f"{pack.task}{SUFFIX}"
        refuse_other_task(path, functools.partial(_holds, path, inputs))
        contents[path.name] = inputs.to_bytes()
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return list(contents)


def _holds(path: Path, inputs: TaskInputs) -> bool:
    """Returns whether a file holds the same task, for the same model."""
    found = TaskInputs.load(path)
    return (
        all(found.description.get(name) == inputs.description[name] for name in ("labels", "eval_augment", "layout"))
        and found.arrays.keys() == inputs.arrays.keys()
        and all(np.array_equal(array, found.arrays[name]) for name, array in inputs.arrays.items())
    )
