"""Ranges of activations for int8: over the masked models of all tasks, since the converter knows one model only."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tensorflow.lite.python.convert import mlir_quantize

from ..flatbuffer import LiteFile, pack_objects, read_objects
from ..weights import Network, Weights
from .constants import Constant
from .elements import Encoder, write_constants

_PADDING = {schema.BuiltinOperator.PAD, schema.BuiltinOperator.PADV2}
Ranges = dict[int, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Saturation:
    """An activation of a new task that a base's range does not hold.

    Attributes:
        tensor: The tensor's name.
        reaches: The range that the task needs.
        limits: The range that the base has.
    """

    tensor: str
    reaches: tuple[float, float]
    limits: tuple[float, float]


def find_ranges(
    file: LiteFile, constants: Sequence[Constant], network: Network, tasks: Iterable[tuple[Weights, np.ndarray]]
) -> Ranges:
    """Returns the smallest and the largest value of each float32 tensor that is no constant, over all tasks.

    Args:
        file: The base with float32 constants; they are overwritten.
        constants: Those that tasks change.
        network: The base.
        tasks: For each task all its weights, and images, float32 `[N, S, S, 3]`.
    """
    ranges: Ranges = {}
    encoder = Encoder(file, {constant.tensor: constant for constant in constants}, network)
    for weights, images in tasks:
        write_constants(encoder, weights)
        for index, (low, high) in _ranges_of(file, images).items():
            old = ranges.get(index, (low, high))
            ranges[index] = min(low, old[0]), max(high, old[1])
    return ranges


def _ranges_of(file: LiteFile, images: np.ndarray) -> Ranges:
    """Returns the ranges over images with the constants as they are."""
    interpreter = Interpreter(
        model_content=bytes(file.data),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        # A delegate would keep tensors to itself.
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    place = interpreter.get_input_details()[0]["index"]
    outputs = {index for operator in file.operators for index in operator.outputs}
    seen = [place, *(i for i in sorted(outputs) if file.tensors[i].type == schema.TensorType.FLOAT32)]
    ranges: Ranges = {}
    for image in images:
        interpreter.set_tensor(place, image[None])
        interpreter.invoke()
        for index in seen:
            values = interpreter.get_tensor(index)
            low, high = ranges.get(index, (np.inf, -np.inf))
            ranges[index] = min(low, float(values.min())), max(high, float(values.max()))
    # RGB, whatever these images hold.
    ranges[place] = 0.0, 255.0
    return ranges


def common_ranges(graphs: Sequence[tuple[LiteFile, Sequence[Constant]]], ranges: Sequence[Ranges]) -> list[Ranges]:
    """Returns the ranges of several graphs with one range for each activation that they compute alike.

    So they get the same scales, and graphs share the biases that are in multiples of these.

    Args:
        graphs: The float files, and those of their constants that tasks change.
        ranges: The range of each tensor of each graph by its number.
    """
    named = [_names(file, constants) for file, constants in graphs]
    common: dict[str, tuple[float, float]] = {}
    for names, own in zip(named, ranges, strict=True):
        for index, (low, high) in own.items():
            old = common.get(names[index], (low, high))
            common[names[index]] = min(low, old[0]), max(high, old[1])
    return [{index: common[names[index]] for index in own} for names, own in zip(named, ranges, strict=True)]


def _names(file: LiteFile, constants: Sequence[Constant]) -> dict[int, str]:
    """Returns for each tensor of a graph a text that says how it is computed, with what from images."""
    names: dict[int, str] = {tensor.index: "images" for tensor in file.tensors}
    for tensor in file.constants():
        names[tensor.index] = hashlib.sha256(file.read(tensor.data).tobytes()).hexdigest()
    for constant in constants:
        names[constant.tensor] = repr(dataclasses.replace(constant, tensor=-1))
    for operator in file.operators:
        if operator.code in _PADDING:
            # It has the range of its input, by how much it pads depends on the size of the images.
            names[operator.outputs[0]] = names[operator.inputs[0]]
            continue
        taken = [names[index] if index >= 0 else "" for index in operator.inputs]
        for place, index in enumerate(operator.outputs):
            text = repr((operator.code, taken, place))
            names[index] = hashlib.sha256(text.encode()).hexdigest()
    return names


def quantise(data: bytes, ranges: Ranges) -> bytes:
    """Returns a file with int8 arithmetic, and float32 images and output, from one with float32 constants.

    Args:
        data: The file.
        ranges: The range of each tensor by its number.
    """
    model = read_objects(data)
    for index, (low, high) in ranges.items():
        quantization = schema.QuantizationParametersT()
        quantization.min, quantization.max = [low], [high]
        model.subgraphs[0].tensors[index].quantization = quantization
    # A private function of TensorFlow, whose version is pinned. litert-quantizer 0.11 was tried in its place, with the
    # same ranges. MobileNetV2 gets the same scales. The features of DenseNet-121 (random weights, 32 px, 24 images) get
    # further from the network's: 0.0226 of their length instead of 0.0200, with five operators more. It also needs one
    # exact version of ai-edge-litert, and puts constants outside of the flatbuffer.
    return mlir_quantize(pack_objects(model))


def corresponding(old: LiteFile, new: LiteFile) -> dict[int, tuple[int, ...]]:
    """Returns, for tensors of a file, those of the same file with other types, by their operators.

    A constant of several operators can have become several, each with the scales that its operator needs: two layers
    with equal biases have one in float32, but not in integers.

    Raises:
        ValueError: If the operators are others.
    """
    pairs: dict[int, dict[int, None]] = {}
    first, second = old.computing(), new.computing()
    if [op.code for op in first] != [op.code for op in second]:
        raise ValueError("Quantisation changes the operators of this network, so that it cannot be patched in int8.")
    for a, b in zip(first, second, strict=True):
        for index, other in (*zip(a.inputs, b.inputs, strict=True), *zip(a.outputs, b.outputs, strict=True)):
            pairs.setdefault(index, {})[other] = None
    return {index: tuple(others) for index, others in pairs.items()}


def move_constants(constants: Sequence[Constant], pairs: Mapping[int, Sequence[int]]) -> list[Constant]:
    """Returns the constants with the numbers of their tensors in another file, each as often as it is there."""
    return [dataclasses.replace(constant, tensor=index) for constant in constants for index in pairs[constant.tensor]]


def find_saturation(file: LiteFile, pairs: Mapping[int, Sequence[int]], ranges: Ranges) -> list[Saturation]:
    """Returns the activations of an int8 base whose range is too small by more than a step.

    Args:
        file: The int8 base.
        pairs: Its tensors by those of the float32 base.
        ranges: The ranges of a task by tensors of the float32 base.
    """
    found = []
    for index, (low, high) in ranges.items():
        for tensor in (file.tensors[number] for number in pairs.get(index, ())):
            if tensor.scales is None or tensor.type != schema.TensorType.INT8:
                continue
            scale, zero = float(file.read(tensor.scales)[0]), int(file.read(tensor.zeros)[0])
            limits = (-128 - zero) * scale, (127 - zero) * scale
            if low < limits[0] - scale or high > limits[1] + scale:
                found.append(Saturation(tensor.name, (low, high), limits))
    return found
