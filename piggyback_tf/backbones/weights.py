"""Weights from files: every weight of the network comes from the file, or there is an error."""

import os
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np

from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.backbones.own import read_model
from piggyback_tf.backbones.paths import finalize_layers, is_container, named_variables
from piggyback_tf.foreign_text import one_line

# A classifier on top of the network in a file is left out: two layers with kernel and bias at most (MobileNetV3).
_MOST_CLASSIFIER_WEIGHTS = 4


def is_published_layout(path: Path) -> bool:
    """Whether an HDF5 file has the layout of the files that `keras.applications` publishes."""
    with h5py.File(path, "r") as file:
        return "layer_names" in file.attrs or "model_weights" in file


def load_weights_file(model: keras.Model, path: Path, name: str) -> None:
    """Sets every weight of `model` from a `.weights.h5` file.

    Args:
        model: A built model; it is not usable after an error.
        path: A file that `check_file` has passed.
        name: Name of the backbone, for messages.

    Raises:
        WeightsError: If the file belongs to another network or lacks a weight.
    """
    if not path.name.endswith(".weights.h5"):
        raise WeightsError(
            f"Weights file {str(path)!r} was not written in the published .h5 layout; "
            "if Keras' save_weights wrote it, its name must end in .weights.h5."
        )
    variables = named_variables(model)
    for variable in variables.values():
        variable.assign(np.full(variable.shape, _sentinel(variable), dtype=variable.dtype))
    try:
        with warnings.catch_warnings():
            # Of a wrong file Keras says layer by layer what it skips; whether anything is missing is checked below.
            warnings.simplefilter("ignore", UserWarning)
            model.load_weights(path)
    except Exception as error:  # Keras raises whatever h5py does; a wrong file must not pass for another failure.
        raise WeightsError(f"Weights file {str(path)!r} does not fit {name!r}: {one_line(error)}") from error
    extra = _count_weights(path) - len(variables)
    if not 0 <= extra <= _MOST_CLASSIFIER_WEIGHTS:
        raise WeightsError(
            f"Weights file {str(path)!r} does not fit {name!r}: it holds {len(variables) + extra} weights, and the "
            f"network has {len(variables)}."
        )
    check_finished(model, path, name)


def load_keras_file(model: keras.Model, path: Path, name: str) -> None:
    """Sets every weight of `model` from a saved Keras model, matched by canonical path.

    The saved model may have more layers, such as a head, and may hold the network as a nested model.

    Args:
        model: A built model.
        path: A file that `check_file` has passed.
        name: Name of the backbone, for messages.

    Raises:
        WeightsError: If the file cannot be read, lacks a weight or has one of another shape.
    """
    saved = read_model(path)
    if not is_container(saved):
        raise WeightsError(f"Model file {str(path)!r} holds no functional or sequential model, but {saved!r}.")
    saved = named_variables(saved)
    variables = named_variables(model)
    prefix = _best_prefix(variables, saved)
    missing = [key for key in variables if prefix + key not in saved]
    if missing:
        raise WeightsError(
            f"Model file {str(path)!r} does not hold {name!r}: {len(missing)} of {len(variables)} weights are missing, "
            f"the first is {missing[0]!r}."
        )
    for key, variable in variables.items():
        found = saved[prefix + key]
        if tuple(found.shape) != tuple(variable.shape) or found.dtype != variable.dtype:
            raise WeightsError(
                f"Model file {str(path)!r} does not fit {name!r}: {key!r} is {found.dtype}{list(found.shape)} in the "
                f"file and {variable.dtype}{list(variable.shape)} in the network."
            )
        variable.assign(found)
    finalize_layers(model)
    check_finished(model, path, name)


def check_finished(model: keras.Model, path: str | os.PathLike, name: str) -> None:
    """Checks that no weight still has the value that stands for "not set", or is not a number in the file.

    Raises:
        WeightsError: If there is such a weight.
    """
    for key, variable in named_variables(model).items():
        value = variable.numpy()
        floating = keras.backend.is_float_dtype(variable.dtype)
        unset = np.isnan(value.astype("float32")).any() if floating else (value == _sentinel(variable)).any()
        if unset:
            raise WeightsError(f"Weights file {str(path)!r} has no value, or not a number, for {key!r} of {name!r}.")


def _sentinel(variable: keras.Variable) -> float | int:
    if keras.backend.is_float_dtype(variable.dtype):
        return np.nan
    return np.iinfo(variable.dtype).min


def _best_prefix(variables: dict, saved: dict) -> str:
    first = next(iter(variables))
    prefixes = [key[: -len(first)] for key in saved if key == first or key.endswith("/" + first)] or [""]
    return max(prefixes, key=lambda prefix: sum(prefix + key in saved for key in variables))


def _count_weights(path: Path) -> int:
    keys = []
    with h5py.File(path, "r") as file:
        file.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) else None)
    return sum(not key.startswith("optimizer/") for key in keys)
