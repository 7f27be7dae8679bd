"""What a network has, and what it has beside the variables of its base: read out, and put back."""

from collections.abc import Mapping

import keras
import numpy as np

from piggyback_tf.backbones import finalize_layers, named_variables
from piggyback_tf.surgery.sharing import BaseVariable


def own_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a copy of every variable of a model that is not a base's, by canonical path."""
    variables = named_variables(model).items()
    return {path: _array(variable) for path, variable in variables if not isinstance(variable, BaseVariable)}


def all_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a copy of every variable of a model, a base's or not, by canonical path."""
    return {path: _array(variable) for path, variable in named_variables(model).items()}


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(variable))


def assign_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Puts arrays into the variables of a model of the same canonical paths.

    Raises:
        ValueError: If a variable that is not a base's has no array, or an array no variable of its shape.
    """
    variables = {
        path: variable for path, variable in named_variables(model).items() if not isinstance(variable, BaseVariable)
    }
    if different := sorted(variables.keys() ^ arrays.keys()):
        raise ValueError(f"What is remembered does not fit the network: {different[0]!r} is in one of them only.")
    for path, variable in variables.items():
        if tuple(variable.shape) != arrays[path].shape:
            raise ValueError(
                f"What is remembered does not fit the network: {path!r} has shape {arrays[path].shape} instead of "
                f"{tuple(variable.shape)}."
            )
        variable.assign(arrays[path])
    finalize_layers(model)
