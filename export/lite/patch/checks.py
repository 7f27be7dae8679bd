"""Before files of design `patch` are written: what `lite/checks.py` asks of all, and that constants are the task's."""

from collections.abc import Mapping

import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskBank, TaskPack

from ...edge.piggyback_edge import Composition, Model, Task
from ...shared.errors import ExportError
from ..checks import FEATURE_LIMITS, Outputs, check_answers, check_features, probe_images, run_outputs
from ..flatbuffer import LiteFile
from ..weights import own_weights
from .compositions import composition_error
from .constants import FACTOR, OFFSET, VECTOR
from .elements import BIAS_ROUNDING, describe_constant, filter_inputs, float16_tolerance
from .patchable import Patchable

# By how many steps a quantised constant may differ from its weight: rounding, and a second one of the zero point.
_STEPS, _STEPS_WITH_ZERO = 0.501, 1.01
# What float32 adds, as a share of the weight.
_ROUNDING = 2e-5


def check_base(base: Patchable, backbone: Backbone) -> None:
    """Checks that a base.tflite whose first graph ends in features gives those of its network.

    Raises:
        ExportError: If not.
    """
    # With a head, nothing but zeros comes out of it before a task is installed.
    if base.manifest.quantize in FEATURE_LIMITS and not base.graphs[0].network.kind.room:
        check_features(base.file.data, backbone, base.manifest.quantize)


def check_task(base: Patchable, model: Model, bank: TaskBank, pack: TaskPack) -> None:
    """Checks that a patched base answers as the bank does, and that its constants are the task's; see `check_answers`.

    Raises:
        ExportError: If not.
    """
    content, task = bytes(model.data), model.task
    outputs = run_outputs(content, probe_images(pack.image_shape), task.signature.name if task.graph else None)
    found = outputs if task.answer == "boxes" else answer(task, outputs, content)
    check_answers(found, bank, pack, base.manifest.quantize)
    # Where one class is all but certain, the answers show little.
    check_constants(base, model.data, pack, task.compositions)


def answer(task: Task, outputs: Outputs, content: bytes) -> np.ndarray:
    """Returns what a task answers with the outputs of a model: probabilities, label maps, or boxes."""
    if task.answer == "boxes":
        return task.boxes(outputs["scores"], outputs["sides"], content)
    (output,) = outputs.values()
    return (task.label_maps if task.answer == "argmax" else task.probabilities)(output, content)


def check_constants(
    base: Patchable, data: bytes | bytearray, pack: TaskPack, composed: Mapping[int, Composition] | None = None
) -> None:
    """Checks that every constant of a patched base is the task's weight, of integers to half a step of its scale.

    This is all that an integer type promises of one: what the roundings of all do to the answers, a test set shows.

    Args:
        base: The base.
        data: The file with the task installed.
        pack: The task.
        composed: What filters are made of, by the place of their entry, where they are more than masked and scaled.

    Raises:
        ExportError: With the first one that is not.
    """
    number = base.graph_of(pack)
    graph = base.graphs[number]
    file, network = LiteFile(data, number), graph.network
    compositions = {base.slots[place].constants[number].tensor: made_of for place, made_of in (composed or {}).items()}
    weights, whole = (own_weights(network, pack, masked=each) for each in (True, False))
    for constant in graph.constants.values():
        tensor = file.tensors[constant.tensor]
        expected = constant.value(network, weights).astype(np.float64)
        distance = np.abs(file.doubles(tensor) - expected)
        steps = _STEPS_WITH_ZERO if constant.role in (FACTOR, OFFSET, VECTOR) else _STEPS
        allowed = steps * file.steps(tensor) + _ROUNDING * np.abs(expected) + np.finfo(np.float32).tiny
        if tensor.data.dtype == np.float16:
            allowed = float16_tolerance(constant, network, whole)
        if (made_of := compositions.get(constant.tensor)) is not None:
            # The device makes it of the base's numbers, which are rounded, too.
            old, (_, inner) = graph.file.steps(graph.file.tensors[constant.tensor]), constant.channels(network)
            allowed = allowed + composition_error(made_of, old, inner, expected.size)
            allowed = allowed + _ROUNDING * np.abs(expected).max()
        # Not "any is greater": NaN is no number that is small enough.
        if not (distance <= allowed).all():
            raise ExportError(
                f"{describe_constant(constant)} of task {pack.task!r} is another one on the converted base: weight "
                f"{int(np.argmax(distance - allowed))} differs by {distance.max():.2g}."
            )
    _check_biases(file, pack)


def _check_biases(file: LiteFile, pack: TaskPack) -> None:
    """Checks that integers of biases are in the multiples that LiteRT takes them in, whatever their scales say.

    These are those of the operator's input times those of its filter.

    Raises:
        ExportError: With the first one that is not.
    """
    for data, kernel, bias in map(filter_inputs, file.operators):
        tensor = file.tensors[bias] if bias >= 0 else None
        if tensor is None or tensor.data is None or tensor.data.dtype != np.int32:
            continue
        # Conversion gives a layer without a bias one of zeros, which are zeros in any multiples.
        if not file.read(tensor.data).any():
            continue
        taken, of_filter = file.steps(file.tensors[data]), file.read(file.tensors[kernel].scales)
        if not np.allclose(file.steps(tensor), taken * of_filter, rtol=BIAS_ROUNDING, atol=0):
            raise ExportError(
                f"The bias {tensor.name!r} of task {pack.task!r} is in other multiples than those that its input and "
                "its filter give on the converted base."
            )
