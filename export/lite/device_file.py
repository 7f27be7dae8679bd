"""From a module with signatures to a .tflite file that says what tasks hand over to it."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from piggyback_tf.backbones import Backbone
from piggyback_tf.backbones.identity import Structure, check_same_computation
from piggyback_tf.files import make_folder, write_atomically
from piggyback_tf.packs import BaseSpec, PackError, TaskBank, TaskPack

from ..errors import ExportError
from ..packs import NO_TASKS, fitting_packs
from ..servable.signatures import good_images
from .check import check_answers, check_images
from .device_network import Changes, DeviceNetwork
from .flatbuffer import pack_objects, read_objects
from .folder import new_folder, refuse_other_task
from .metadata import add_metadata
from .model_description import append_files, read_description
from .run import load_model
from .task_inputs import NO_CLASS, SUFFIX, TaskInputs

MODEL = "model.tflite"
Signatures = Mapping[str, tf.types.experimental.ConcreteFunction]


def export_device(
    make_module: Callable[[DeviceNetwork], tuple[tf.Module, Signatures]],
    design: str,
    backbone: Backbone,
    packs: Iterable[TaskPack],
    output: Path,
    *,
    max_classes: int | None,
    float16: bool,
) -> list[Path]:
    """Writes a model that takes masks as inputs, and a file with the inputs of each task.

    Args:
        make_module: Returns the module of a network, and its signatures by name.
        design: The design's name.
        backbone: The base; not changed.
        packs: The tasks. What none of them changes is a constant of the model.
        output: The folder, which must not be there, or be empty; it is written whole or not at all.
        max_classes: For how many classes the model has room; if None for as many as the largest task has.
        float16: Whether constants are stored in half precision.

    Returns:
        The files: first the model, then those of the tasks.

    Raises:
        PackError: If a pack is for another base, has more classes than there is room for, or two tasks have one name.
        ExportError: If there are no packs, LiteRT's own operators cannot compute the network, or the model does not
            answer as the bank.
        ValueError: If a layer cannot be exported so.
        OSError: If the files cannot be written.
    """
    packs = _checked(packs, backbone)
    changes = Changes.of(packs, max_classes)
    for pack in packs:
        changes.check(pack)
    structure = backbone.structure
    network = DeviceNetwork(backbone, changes, structure.digest)
    model = convert_signatures(*make_module(network), float16=float16)
    layout = network.layout
    quantize = "float16" if float16 else "none"
    description = {"design": design, "quantize": quantize, "digest": layout.digest(), "layout": layout.to_json()}
    description |= structure.to_json()
    objects = read_objects(model)
    add_metadata(objects, backbone.name, backbone.preprocessing)
    with new_folder(output) as folder:
        (folder / MODEL).write_bytes(pack_objects(objects))
        append_files(folder / MODEL, description)
        names = [MODEL, *_write_inputs(network, packs, folder, folder / MODEL, backbone)]
    return [output / name for name in names]


def add_inputs(backbone: Backbone, packs: Iterable[TaskPack], model: Path, output: Path | None = None) -> list[Path]:
    """Writes the inputs of more tasks for a model that is there; the model stays as it is.

    Args:
        backbone: The model's base; not changed.
        packs: The tasks.
        model: The model's file.
        output: The folder of the new files; that of the model if None.

    Returns:
        The files of the tasks.

    Raises:
        PackError: If it is no such model, the base is another one, or a task changes what is constant in it.
        ExportError: If there are no packs, or the model does not answer as the bank.
        OSError: If the files cannot be written.
    """
    found = read_description(model)
    packs, layout = _checked(packs, backbone), found["layout"]
    if layout["base_hash"] != backbone.hash:
        raise PackError(f"The model {str(model)!r} is of another base than {backbone.name!r} as it is here.")
    check_same_computation(f"The model {str(model)!r}", Structure.from_json(found), backbone.structure, PackError)
    masked = frozenset(path for path, _ in layout["filters"])
    changes = Changes(masked, bool(layout["norms"]), layout["bits"], layout["classes"])
    for pack in packs:
        changes.check(pack)
    network = DeviceNetwork(backbone, changes, layout.get("base_structure"))
    if network.layout.digest() != found["digest"]:
        raise PackError(f"The model {str(model)!r} was written by another version of this package; export it anew.")
    folder = model.parent if output is None else output
    make_folder(folder)
    return [folder / name for name in _write_inputs(network, packs, folder, model, backbone)]


def convert_signatures(module: tf.Module, signatures: Signatures, *, float16: bool) -> bytes:
    """Returns the bytes of a .tflite file of LiteRT's own operators.

    Raises:
        ExportError: If they cannot compute a signature.
    """
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=dict(signatures))
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
        converter.experimental_enable_resource_variables = True
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        try:
            return converter.convert()
        except Exception as error:  # noqa: BLE001 (the converter has no public exception type)
            reason = next((line for line in str(error).splitlines() if "error:" in line), str(error).splitlines()[0])
            raise ExportError(f"LiteRT's own operators cannot compute this network: {reason}") from error


def head_probabilities(images: tf.Tensor, features: tf.Tensor, head: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns the softmax over the logits of a head, `[1, C]`; zeros if the images are not numbers in [0, 255]."""
    # A product of rank 3 is one that XNNPACK takes; see `device_layers`.
    found = tf.nn.softmax(tf.matmul(features[None], head[None])[0] + bias)
    return tf.where(good_images(images)[:, None], found, 0.0)


def head_specs(network: DeviceNetwork) -> dict[str, tf.TensorSpec]:
    """Returns what a task hands over, by name; without `mask` and `norm` if all tasks have those of the base."""
    layout = network.layout
    specs = {
        "mask": tf.TensorSpec([layout.mask_bytes], tf.uint8, "mask"),
        "norm": tf.TensorSpec([layout.norm_length], tf.float32, "norm"),
        "head": tf.TensorSpec([layout.features, layout.classes], tf.float32, "head"),
        "bias": tf.TensorSpec([layout.classes], tf.float32, "bias"),
    }
    return {name: spec for name, spec in specs.items() if spec.shape.num_elements()}


def images_spec(network: DeviceNetwork) -> tf.TensorSpec:
    """Returns what images are: float32 `[1, S, S, 3]` in [0, 255]."""
    size = network.layout.image_size
    return tf.TensorSpec([1, size, size, 3], tf.float32, "images")


def count_classes(bias: tf.Tensor) -> tf.Tensor:
    """Returns how many classes the head of a task has, int32 `[1]`."""
    return tf.reduce_sum(tf.cast(bias > NO_CLASS / 2, tf.int32), axis=0, keepdims=True)


def _write_inputs(
    network: DeviceNetwork, packs: Sequence[TaskPack], folder: Path, model: Path, backbone: Backbone
) -> list[str]:
    """Writes what tasks hand over, after comparing the model's answers with the bank's; returns the files' names."""
    layout, loaded, bank, contents = network.layout, load_model(model), TaskBank(backbone), {}
    for pack in packs:
        inputs = TaskInputs.of(pack, network.mask_of(pack), network.norm_of(pack), layout.classes, layout.digest())
        loaded.set_task(inputs)
        check_answers(loaded.predict(check_images(backbone.image_size)), bank, pack, loaded.quantize)
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


def _checked(packs: Iterable[TaskPack], backbone: Backbone) -> list[TaskPack]:
    """Returns packs that fit the base."""
    found = list(fitting_packs(packs, BaseSpec.of(backbone)))
    if not found:
        raise ExportError(NO_TASKS)
    return found
