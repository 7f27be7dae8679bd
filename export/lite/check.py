"""Compares a converted base, and each task on it, with the network itself before anything is written."""

from typing import TYPE_CHECKING

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskBank, TaskPack

from ..edge.piggyback_edge import Model
from ..errors import ExportError
from .constants import FACTOR, OFFSET
from .elements import describe, float16_tolerance
from .flatbuffer import LiteFile
from .weights import own_weights

if TYPE_CHECKING:
    from .base import PatchBase

# How much features may differ, as a share of their length. What a wrong constant does is far beyond; what integers
# cost, a test set has to show. An int8 base has the ranges of its tasks, not its own: it is compared as float32.
_FEATURE_LIMITS = {"none": 1e-3, "float16": 5e-2, "dynamic": 0.5}
# The same for probabilities, absolute; only of types that are exact enough for it.
_LIMITS = {"none": 1e-3, "float16": 5e-2}
# By how many steps a quantised constant may differ from its weight: rounding, and a second one of the zero point.
_STEPS, _STEPS_WITH_ZERO = 0.501, 1.01
# What float32 adds, as a share of the weight.
_ROUNDING = 2e-5


def run_model(data: bytes | bytearray, images: np.ndarray) -> np.ndarray:
    """Returns the output of a model, float32 `[B, ...]`, for images, float32 `[B, S, S, 3]`."""
    interpreter = Interpreter(model_content=bytes(data), num_threads=1)
    interpreter.allocate_tensors()
    place, result = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    outputs = []
    for image in images:
        interpreter.set_tensor(place, image[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(result)[0].copy())
    return np.stack(outputs)


def check_base(base: "PatchBase", backbone: Backbone) -> None:
    """Checks that a base.tflite gives the features of its network.

    Raises:
        ExportError: If not.
    """
    # With a head, nothing but zeros comes out of it before a task is installed.
    if base.manifest.quantize in _FEATURE_LIMITS and not base.manifest.max_classes:
        check_features(base.file.data, backbone, base.manifest.quantize)


def check_features(data: bytes | bytearray, backbone: Backbone, quantize: str) -> None:
    """Checks that a file that ends in features gives those of its network.

    Raises:
        ExportError: If not.
    """
    images = check_images(backbone.image_size)
    expected = np.asarray(backbone.model(images, training=False), np.float32)
    found = run_model(data, images)
    difference = float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))
    # Not "greater than": NaN is no number that is small enough.
    if not difference <= _FEATURE_LIMITS[quantize]:
        cure = (
            "Conversion has made a constant of a kernel and of something else, such as the offset of a Rescaling "
            "before a convolution without padding. Use --design=switch or --design=input."
            if quantize == "none"
            else "Try another quantisation, or --design=switch."
        )
        raise ExportError(
            f"The converted base does not give the features of {backbone.name!r}: with constants of type {quantize!r} "
            f"they differ by {difference:.1%} of their length. {cure}"
        )


def check_task(base: "PatchBase", model: Model, bank: TaskBank, pack: TaskPack) -> None:
    """Checks that a patched base answers as the bank does, and that its constants are the task's; see `check_answers`.

    Raises:
        ExportError: If not.
    """
    content = bytes(model.data)
    found = model.task.probabilities(run_model(content, check_images(bank.backbone.image_size)), content)
    check_answers(found, bank, pack, base.manifest.quantize)
    # Where one class is all but certain, the answers show little.
    check_constants(base, model.data, pack)


def check_answers(found: np.ndarray, bank: TaskBank, pack: TaskPack, quantize: str) -> None:
    """Checks that an export gives the bank's probabilities for `check_images`; with integers, that it gives numbers.

    Args:
        found: The probabilities.
        bank: Without the task, which is in it while this runs. One bank for many tasks is built only once.
        pack: The task.
        quantize: The type of the export's constants.

    Raises:
        ExportError: If not.
    """
    if not np.isfinite(found).all():
        raise ExportError(f"Task {pack.task!r} gives results that are no numbers on this base.")
    limit = _LIMITS.get(quantize)
    if limit is None:
        return
    expected = bank.add(pack).predict(check_images(bank.backbone.image_size), task=pack.task)
    bank.remove(pack.task)
    difference = float(np.abs(found - expected).max())
    if not difference <= limit:
        raise ExportError(
            f"Task {pack.task!r} gives other probabilities on the converted base than in the bank: they differ by "
            f"{difference:.2g}."
        )


def check_constants(base: "PatchBase", data: bytes | bytearray, pack: TaskPack) -> None:
    """Checks that every constant of a patched base is the task's weight, of integers to half a step of its scale.

    This is all that an integer type promises of one: what the roundings of all do to the answers, a test set shows.

    Args:
        base: The base.
        data: The file with the task installed.
        pack: The task.

    Raises:
        ExportError: With the first one that is not.
    """
    file, weights, whole = LiteFile(data), *(own_weights(base.network, pack, masked=each) for each in (True, False))
    for constant in base.constants.values():
        tensor = file.tensors[constant.tensor]
        expected = constant.value(base.network, weights).astype(np.float64)
        distance = np.abs(file.doubles(tensor) - expected)
        steps = _STEPS_WITH_ZERO if constant.role in (FACTOR, OFFSET) else _STEPS
        allowed = steps * file.steps(tensor) + _ROUNDING * np.abs(expected) + np.finfo(np.float32).tiny
        if tensor.data.dtype == np.float16:
            allowed = float16_tolerance(constant, base.network, whole)
        # Not "any is greater": NaN is no number that is small enough.
        if not (distance <= allowed).all():
            raise ExportError(
                f"{describe(constant)} of task {pack.task!r} is another one on the converted base: weight "
                f"{int(np.argmax(distance - allowed))} differs by {distance.max():.2g}."
            )


def check_images(size: int) -> np.ndarray:
    """Returns the images that exports are compared on, float32 `[2, S, S, 3]`."""
    return np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype(np.float32)
