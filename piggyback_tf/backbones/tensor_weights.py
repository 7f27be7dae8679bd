"""From tensors, as PyTorch has them, to the weights of a network: all come from the file, or there is an error."""

import keras
import numpy as np

from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.backbones.paths import layer_weights, named_layers
from piggyback_tf.backbones.tensor_files import TensorFile, opened
from piggyback_tf.backbones.weights import check_finished

# What files call the weights of a layer; `weight` and `bias` are also those of batch norm.
_NAMES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
# All of their numbers are numbers of float32.
_DTYPES = ("F32", "F16")


def load_tensors(model: keras.Model, file: TensorFile, name: str) -> None:
    """Sets every weight of `model` from a file of tensors.

    Args:
        model: A built model; it is not usable after an error.
        file: The file, as it was found for this network.
        name: Name of the backbone, for messages.

    Raises:
        WeightsError: If the file lacks a weight, has one of another shape or dtype, or one that the network lacks.
    """
    misfit = f"The weights {file.provenance!r} do not fit {name!r}"
    with opened(file.path) as tensors:
        left = file.needed(tensors.keys())
        for path, layer in named_layers(model):
            for own, variable in layer_weights(layer).items():
                key = f"{file.names[path]}.{_NAMES[own]}"
                if key not in left:
                    raise WeightsError(f"{misfit}: there is no tensor {key!r} in the file, for the layer {path!r}.")
                left.remove(key)
                tensor, channels = tensors.get_slice(key), file.layout.flattened.get(path)
                shapes = _shapes(tuple(variable.shape), channels)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                if shape not in shapes or dtype not in _DTYPES:
                    raise WeightsError(
                        f"{misfit}: {key!r} is {dtype}{list(shape)} in the file, and should be {' or '.join(_DTYPES)} "
                        f"of shape {' or '.join(str(list(one)) for one in shapes)}."
                    )
                variable.assign(_as_keras(tensor[:].astype("float32"), tuple(variable.shape), channels))
    if left:
        raise WeightsError(f"{misfit}: the network has no place for {min(left)!r}.")
    check_finished(model, file.provenance, name)


def _shapes(shape: tuple[int, ...], channels: int | None) -> list[tuple[int, ...]]:
    """Returns the shapes that a tensor may have in a file.

    Args:
        shape: In Keras: of a convolution `[H, W, I, O]`, of a dense layer `[I, O]`, or of a vector.
        channels: Of the feature map that goes flattened into a dense layer; None if none does.
    """
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        return [(outputs, inputs, height, width)]
    if len(shape) == 2:
        inputs, outputs = shape
        channels = channels or inputs
        side = round((inputs // channels) ** 0.5)
        # timm keeps such a layer as a convolution over all of the feature map.
        return [(outputs, inputs), (outputs, channels, side, side)]
    return [shape]


def _as_keras(value: np.ndarray, shape: tuple[int, ...], channels: int | None) -> np.ndarray:
    """Returns the array of a tensor in the order of Keras; see `_shapes`."""
    if len(shape) == 4:
        return value.transpose(2, 3, 1, 0)
    if len(shape) == 2:
        inputs, outputs = shape
        # From channels with their places to places with their channels.
        return value.reshape(outputs, channels or inputs, -1).transpose(2, 1, 0).reshape(shape)
    return value
