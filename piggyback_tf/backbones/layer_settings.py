"""Which settings of Keras' layers and operations decide what they compute: the rows of `structure_text.py`.

They are written so that equal settings are equal text.

The lists are a part of the format of packs: what changes the text of a network, be it one row more, needs another
number in its first line, and the old lists for the packs that are there.

A class that is not listed here is *unknown*: nothing is said of its settings. What a list leaves out does not change
an answer, or is seen otherwise: initialisers, regularisers, constraints, dropout rates and momentum work in training
alone, and numbers of units and sizes of kernels are the shapes of weights, which the base hash covers.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

_CONV = "strides padding data_format dilation_rate"
_POOL = "pool_size strides padding data_format"
_GLOBAL = "data_format keepdims"
_ADAPTIVE = "output_size data_format"
_NORM = "axis epsilon center scale"
_NAMES = ("1D", "2D", "3D")


def _each(name: str, settings: str) -> dict[str, str]:
    """Returns the rows of a layer for one, two and three dimensions."""
    return {f"{name}{dimensions}": settings for dimensions in _NAMES}


# Of `keras.layers`, and of the layers that the networks of `keras.applications` bring along.
_LAYERS: dict[str, str] = {
    **_each("Conv", f"{_CONV} groups activation"),
    **{
        f"{kind}Conv{n}": f"{_CONV} depth_multiplier activation"
        for kind in ("Depthwise", "Separable")
        for n in _NAMES[:2]
    },
    **{f"Conv{n}Transpose": f"{_CONV} output_padding activation" for n in _NAMES},
    "Dense": "activation",
    "EinsumDense": "equation activation",
    "MultiHeadAttention": "num_heads key_dim value_dim attention_axes _sliding_window _use_gate",
    **_each("AveragePooling", _POOL),
    **_each("MaxPooling", _POOL),
    **_each("GlobalAveragePooling", _GLOBAL),
    **_each("GlobalMaxPooling", _GLOBAL),
    **_each("AdaptiveAveragePooling", _ADAPTIVE),
    **_each("AdaptiveMaxPooling", _ADAPTIVE),
    "BatchNormalization": f"{_NORM} renorm",
    "LayerNormalization": _NORM,
    "GroupNormalization": f"{_NORM} groups",
    "RMSNormalization": "axis epsilon",
    "UnitNormalization": "axis",
    "Normalization": "axis input_mean input_variance invert",
    "Rescaling": "scale offset",
    "Resizing": "height width interpolation crop_to_aspect_ratio pad_to_aspect_ratio fill_mode fill_value antialias "
    "data_format",
    "CenterCrop": "height width data_format",
    "Activation": "activation",
    "ReLU": "max_value negative_slope threshold",
    "LeakyReLU": "negative_slope",
    "PReLU": "shared_axes",
    "ELU": "alpha",
    "Softmax": "axis",
    "Add": "",
    "Subtract": "",
    "Multiply": "",
    "Average": "",
    "Maximum": "",
    "Minimum": "",
    "Concatenate": "axis",
    "Dot": "axes normalize",
    "Reshape": "target_shape",
    "Flatten": "data_format",
    "Permute": "dims",
    "RepeatVector": "n",
    "Cropping1D": "cropping",
    "Cropping2D": "cropping data_format",
    "Cropping3D": "cropping data_format",
    **_each("ZeroPadding", "padding data_format"),
    "UpSampling1D": "size",
    "UpSampling2D": "size data_format interpolation",
    "UpSampling3D": "size data_format",
    "Identity": "",
    "Dropout": "",
    **_each("SpatialDropout", ""),
    "GaussianDropout": "",
    "GaussianNoise": "",
    "AlphaDropout": "",
    "ActivityRegularization": "",
    "LayerScale": "",
    "StochasticDepth": "",
    "CustomScaleLayer": "scale",
}

# Of `keras.ops`, as they stand in the graph of a functional model. Without settings, but for what they are called on:
_PLAIN_OPERATIONS = """
    Abs Absolute Add Ceil Cos Divide Dot Erf Exp Expm1 Floor FloorDivide GetItem HardSigmoid HardSilu HardTanh Log Log1p
    LogSigmoid Matmul Maximum Minimum Mod Multiply Negative Outer Power Ravel Reciprocal Relu Relu6 Rsqrt Selu Sigmoid
    Sign Silu Sin Softplus Softsign Sqrt Square StopGradient Subtract Tanh TrueDivide Where
"""
_OPERATIONS: dict[str, str] = {
    **dict.fromkeys(_PLAIN_OPERATIONS.split(), ""),
    **dict.fromkeys(("Concatenate", "Stack", "Squeeze", "ExpandDims", "Flip", "Softmax", "LogSoftmax", "Take"), "axis"),
    **dict.fromkeys(("Mean", "Sum", "Amax", "Amin", "Std", "Var", "Prod", "Logsumexp"), "axis keepdims"),
    **dict.fromkeys(("Max", "Min"), "axis keepdims initial"),
    **dict.fromkeys(("Conv", "DepthwiseConv", "SeparableConv"), _CONV),
    **dict.fromkeys(("AveragePool", "MaxPool"), _POOL),
    "BatchNorm": "axis epsilon",
    "BroadcastTo": "shape",
    "Cast": "dtype",
    "Clip": "x_min x_max",
    "ConvTranspose": f"{_CONV} output_padding",
    "DotProductAttention": "is_causal attn_logits_soft_cap",
    "Einsum": "subscripts",
    "Elu": "alpha",
    "Gelu": "approximate",
    "LeakyRelu": "negative_slope",
    "Moveaxis": "source destination",
    "Normalize": "axis order epsilon",
    "Pad": "pad_width mode",
    "Repeat": "repeats axis",
    "Reshape": "newshape",
    "Resize": "size interpolation antialias crop_to_aspect_ratio pad_to_aspect_ratio fill_mode fill_value data_format",
    "Roll": "shift axis",
    "Split": "indices_or_sections axis",
    "Swapaxes": "axis1 axis2",
    "Tile": "repeats",
    "Transpose": "axes",
}
_ROWS = {"layers": _LAYERS, "applications": _LAYERS, "ops": _OPERATIONS}


class UnknownError(Exception):
    """It is not known what something computes."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """A value in a graph, by its number in the description."""

    text: str


def describe_operation(operation: keras.Operation, rank: int | None = None) -> str:
    """Returns the class of a layer or operation with the settings that decide what it computes.

    Settings that are None or False are left out, so that one that a version of Keras adds changes no text where it is
    off.

    Args:
        operation: The layer or operation.
        rank: Of what it is called on, if it is one tensor; negative axes of layers are counted by it.

    Raises:
        UnknownError: If the class is not listed, or a setting is nothing that can be written.
    """
    kind = type(operation)
    package = kind.__module__.removeprefix("keras.src.").partition(".")[0]
    rows = _ROWS.get(package, {}) if kind.__module__.startswith("keras.src.") else {}
    if kind.__name__ not in rows or changed_kernel(operation):
        raise UnknownError(kind.__name__)
    values = {name: getattr(operation, name, None) for name in rows[kind.__name__].split()}
    if package != "ops" and rank is not None and "axis" in values:
        values["axis"] = _counted(values["axis"], rank)
    settings = [
        f"{name}={describe_value(value)}" for name, value in values.items() if value is not None and value is not False
    ]
    return f"{'ops' if package == 'ops' else 'layers'}.{kind.__name__}({', '.join(settings)})"


def changed_kernel(layer: Any) -> str:
    """Returns what a layer makes of its kernel before it computes: `"is quantised (int8)"`, or `""` for nothing."""
    if mode := getattr(layer, "quantization_mode", None):
        return f"is quantised ({mode})"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "lora_rank", None):
        return "has LoRA enabled"
    return ""


def describe_value(value: Any) -> str:
    """Returns a setting or constant as text, the same for a list and a tuple, and for 6 and 6.0.

    Numbers are written to the nine digits that tell all float32 apart.

    Raises:
        UnknownError: If it is nothing that can be written, such as a function of one's own.
    """
    if isinstance(value, Reference):
        return value.text
    if value is None or value is Ellipsis or isinstance(value, bool | np.bool_):
        return str(value)
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        with np.errstate(over="ignore"):
            return f"{np.float32(value):.9g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(describe_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {describe_value(item)}' for key, item in sorted(value.items()))}}}"
    if isinstance(value, slice):
        return ":".join(map(describe_value, (value.start, value.stop, value.step)))
    if isinstance(value, keras.Layer):
        return describe_operation(value)
    if callable(value):
        return _function_name(value)
    try:
        return describe_value(keras.ops.convert_to_numpy(value).tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise UnknownError(type(value).__name__) from error


def _function_name(function: Any) -> str:
    """Returns the name of one of Keras' activation functions."""
    if id(function) not in _activations():
        raise UnknownError("a function")
    return _activations()[id(function)]


@functools.cache
def _activations() -> dict[int, str]:
    # Of the names of one function the first: `silu` is `swish`, too.
    return {
        id(function): name
        for name, function in sorted(vars(keras.activations).items(), reverse=True)
        if callable(function) and not name.startswith("_") and name not in ("get", "serialize", "deserialize")
    }


def _counted(axis: Any, rank: int) -> Any:
    """Returns axes counted from the first."""
    if isinstance(axis, list | tuple):
        return [_counted(one, rank) for one in axis]
    return axis + rank if isinstance(axis, int) and axis < 0 else axis
