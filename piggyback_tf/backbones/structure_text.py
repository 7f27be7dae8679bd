"""The structure of a base, from its network: what it computes with its weights, as text and as a digest of that.

The base hash covers weights alone, and two networks with the same weights may differ in the scaling of their input, in
strides, activations, pooling or the shape of their graph. Keras' own configs cannot tell them apart: those of one and
the same network differ between versions of Keras and, by numbers in names, within one process.
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from piggyback_tf.backbones.layer_settings import Reference, UnknownError, describe_operation, describe_value
from piggyback_tf.backbones.paths import calls_of, is_container, named_layers
from piggyback_tf.backbones.structure_record import ANSWERS, Structure

_HEADER = "piggyback_tf structure 1"
# Of the two images by which networks with unknown operations are compared, the second is made of so many squares.
_SQUARES = 4


@dataclasses.dataclass(frozen=True, eq=False)
class _Call:
    """A call of an operation: what it is, and on what it is called, other calls' `_Result`s among it."""

    name: str
    text: str | None
    arguments: list[Any]
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Result:
    """What a call returns, or the part of it with this number."""

    call: _Call
    part: int | None = None


def model_structure(model: keras.Model, image_size: int) -> Structure:
    """Returns what identifies the computation of a network, its weights aside.

    Args:
        model: A built functional or sequential model from images `[B, S, S, 3]` to features `[B, F]`.
        image_size: S, the side of the images.

    Returns:
        The digest of `structure_text`; if that has unknown operations, with what the network, with the weights that it
        has now, makes of two images.
    """
    text, known = structure_text(model)
    digest = hashlib.sha256(f"{_HEADER}\n{text}\n".encode()).hexdigest()
    return Structure(digest, None if known else _answers(model, image_size))


def structure_text(model: keras.Model) -> tuple[str, bool]:
    """Describes what a network computes with its weights.

    A line for each call of a layer or operation that the output depends on: the canonical path of a layer with weights,
    the class, the settings that decide what it computes, and what it is called on, by the numbers of other lines and as
    constants. Nested models are entered. Names, dtypes, initialisers, trainable flags, seeds and the order in which
    Keras keeps layers make no difference, and neither does the size of images where no layer depends on it.

    Args:
        model: A built functional or sequential model.

    Returns:
        The lines, and whether all of them say how they compute: a layer or operation that is not listed in
        `layer_settings`, and one that is called on something that cannot be written, is `unknown`.
    """
    paths = {id(layer): path for path, layer in named_layers(model) if layer.weights}
    inputs = [_Result(_Call(f"input {place}", f"input {place}", [], {})) for place in range(len(model.inputs))]
    if not _can_be_entered(model):
        results = [_Result(_Call(type(model).__name__, None, list(inputs), {}))]
    else:
        results = _enter(model, inputs, paths)
    numbers: dict[int, int] = {}
    lines, known = [], True
    for call in _in_order(result.call for result in results):
        numbers[id(call)] = len(lines)
        line = _written(call, numbers)
        if line is None:
            known = False
            line = f"unknown {call.name} {_referred(list(_results_in(call)), numbers)}"
        lines.append(f"{len(lines)} = {line}")
    return "\n".join([*lines, f"output {_referred(results, numbers)}"]), known


def _enter(model: keras.Model, inputs: list[_Result], paths: dict[int, str]) -> list[_Result]:
    """Returns the results of a model that is called on others' results."""
    results: dict[int, _Result] = {}
    for tensor, value in zip(model.inputs, inputs, strict=True):
        # Keras converts what enters a model to the dtype of its input. Between floating point numbers this is a matter
        # of precision; to integers it cuts off.
        whole = not keras.backend.is_float_dtype(tensor.dtype)
        results[id(tensor)] = _Result(_Call("cast", f"cast to {tensor.dtype}", [value], {})) if whole else value
    for node in calls_of(model):
        if node.is_input:
            continue
        arguments, options = node.arguments.fill_in(results)
        # Whoever runs a model says whether it is trained, which goes before what a call in it says.
        options = {name: value for name, value in options.items() if value is not None and name != "training"}
        found = _call(node, list(arguments), options, paths)
        results |= {id(tensor): result for tensor, result in zip(node.output_tensors, found, strict=True)}
    return [results[id(tensor)] for tensor in model.outputs]


def _call(node: Any, arguments: list[Any], options: dict[str, Any], paths: dict[int, str]) -> list[_Result]:
    """Returns the results of one call."""
    operation, count = node.operation, len(node.output_tensors)
    if _can_be_entered(operation) and len(arguments) == 1 and not options:
        values = keras.tree.flatten(arguments[0])
        if len(values) == len(operation.inputs) and all(isinstance(value, _Result) for value in values):
            return _enter(operation, values, paths)
    path = f"{describe_value(paths[id(operation)])} " if id(operation) in paths else ""
    rank = len(node.input_tensors[0].shape) if node.input_tensors else None
    try:
        text = path + describe_operation(operation, rank)
    except UnknownError:
        text = None
    call = _Call(path + type(operation).__name__, text, arguments, options)
    return [_Result(call)] if count == 1 else [_Result(call, part) for part in range(count)]


def _can_be_entered(operation: Any) -> bool:
    """Whether a model computes what its graph says, and not what a `call` of a subclass says."""
    if not is_container(operation) or not type(operation).call.__module__.startswith("keras."):
        return False
    # A sequential model of which Keras could not make a graph has none.
    return not isinstance(operation, keras.Sequential) or operation._functional is not None


def _in_order(calls: Iterable[_Call]) -> Iterable[_Call]:
    """Yields calls and all that they depend on, each once, after what it depends on; arguments from left to right."""
    # Without recursion: hundreds of calls hang on one another.
    seen, stack = set(), [(call, False) for call in reversed(list(calls))]
    while stack:
        call, ready = stack.pop()
        if ready:
            yield call
        elif id(call) not in seen:
            seen.add(id(call))
            stack.append((call, True))
            stack += [
                (result.call, False) for result in reversed(list(_results_in(call))) if id(result.call) not in seen
            ]


def _results_in(call: _Call) -> Iterable[_Result]:
    """Returns the results of other calls that a call depends on."""
    flat = keras.tree.flatten([call.arguments, [call.options[name] for name in sorted(call.options)]])
    return (value for value in flat if isinstance(value, _Result))


def _written(call: _Call, numbers: dict[int, int]) -> str | None:
    """Returns a call as text; None if that does not say what it computes."""

    def reference(value: Any) -> Any:
        return Reference(_name(value, numbers)) if isinstance(value, _Result) else value

    arguments, options = keras.tree.map_structure(reference, (call.arguments, call.options))
    if call.text is None:
        return None
    try:
        return f"{call.text} {describe_value(arguments)}{describe_value(options) if options else ''}"
    except UnknownError:
        return None


def _referred(results: list[_Result], numbers: dict[int, int]) -> str:
    return describe_value([Reference(_name(result, numbers)) for result in results])


def _name(result: _Result, numbers: dict[int, int]) -> str:
    return f"%{numbers[id(result.call)]}" + ("" if result.part is None else f".{result.part}")


def _answers(model: keras.Model, image_size: int) -> tuple[float | None, ...]:
    """Returns what a network makes of two images, projected to eight numbers each."""
    # On the CPU, since GPUs round products to fewer digits than the comparison allows for.
    with keras.device("cpu:0"):
        features = keras.ops.convert_to_numpy(model(_images(image_size), training=False)).astype(np.float64)
    half = ANSWERS // 2
    signs = np.unpackbits(_bytes("projection", features.shape[1])).reshape(-1, half) * 2.0 - 1.0
    numbers = (features @ signs / features.shape[1]).reshape(-1)
    return tuple(float(number) if np.isfinite(number) else None for number in numbers)


def _images(size: int) -> np.ndarray:
    """Returns two images, float32 `[2, S, S, 3]`, whole numbers in [0, 255]: noise, and squares of one colour each."""
    noise = _bytes("noise", size * size * 3).reshape(size, size, 3)
    place = np.arange(size) * _SQUARES // size
    squares = _bytes("squares", _SQUARES * _SQUARES * 3).reshape(_SQUARES, _SQUARES, 3)[place][:, place]
    return np.stack([noise, squares]).astype(np.float32)


def _bytes(purpose: str, count: int) -> np.ndarray:
    """Returns bytes that are the same with every version of every library."""
    return np.frombuffer(hashlib.shake_256(f"{_HEADER} {purpose}".encode()).digest(count), np.uint8)
