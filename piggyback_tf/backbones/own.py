"""Networks from files: `PATH.keras` in place of a name. Importing this file does not load TensorFlow."""

import functools
import json
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.file_names import NETWORK_SUFFIX
from piggyback_tf.sentences import one_line

if TYPE_CHECKING:
    import keras

# What is said of the weights of a network that brings its own.
GIVEN = "given"
PREPROCESSING = "as in the given model"


def is_model_file(name: str | os.PathLike) -> bool:
    """Whether a backbone is asked for by the file of a Keras model; the names of networks have no dot."""
    return os.fspath(name).endswith(NETWORK_SUFFIX)


def check_model_file(path: str | os.PathLike) -> Path:
    """Returns the path of a Keras model file that is there.

    Raises:
        WeightsError: If there is none, or it is something else.
    """
    path = Path(path)
    if not path.exists():
        raise WeightsError(
            f"There is no model file {str(path)!r}. A file that ends in {NETWORK_SUFFIX} is what Keras' save writes."
        )
    if not path.is_file():
        raise WeightsError(f"{str(path)!r} is not a file. A Keras model is one file, which ends in {NETWORK_SUFFIX}.")
    if not zipfile.is_zipfile(path):
        raise WeightsError(f"{str(path)!r} is not a Keras model file, or it is truncated.")
    return path


def input_size(path: Path) -> int | None:
    """Returns height and width of the images that the model in a file takes, as far as that is seen without Keras.

    Args:
        path: A file that `check_model_file` has passed.

    Returns:
        The size; None if the model leaves it open, takes no square images, or does not say it where it is looked for.

    Raises:
        WeightsError: If the file is a ZIP archive and no Keras model.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{str(path)!r} is not a Keras model file: {one_line(error)}") from error
    shape = _input_shape(model.get("config") if isinstance(model, dict) else None)
    if not isinstance(shape, list) or len(shape) != 4 or shape[1] != shape[2]:
        return None
    return shape[1] if type(shape[1]) is int else None


def _input_shape(config: Any) -> Any:
    """Returns the shape of the first input of a functional or sequential model."""
    layers = config.get("layers") if isinstance(config, dict) else None
    for layer in layers if isinstance(layers, list) else ():
        if isinstance(layer, dict) and layer.get("class_name") == "InputLayer":
            return layer.get("config", {}).get("batch_shape")
    return config.get("build_input_shape") if isinstance(config, dict) else None


def read_model(path: Path) -> "keras.Model":
    """Returns the model in a Keras file.

    Raises:
        WeightsError: If Keras cannot load it.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever a layer does.
        # Keras prints the whole model first, and what is wrong with it last.
        cause = ValueError(str(error).rpartition("Exception encountered:")[2] or type(error).__name__)
        raise WeightsError(f"Model file {str(path)!r} cannot be loaded: {one_line(cause)}") from error


def read_network(path: Path, image_size: int) -> "keras.Model":
    """Returns the model in a Keras file as the network of a backbone.

    Args:
        path: A file that `check_model_file` has passed.
        image_size: Height and width of the images.

    Raises:
        WeightsError: If Keras cannot load it, or a weight is not a number.
        ValueError: If it is no functional or sequential model from images to features.
    """
    from piggyback_tf.backbones.backbone import Backbone
    from piggyback_tf.backbones.weights import check_finished

    try:
        model = read_model(path)
    except WeightsError as error:
        raise WeightsError(
            f"{error} A model with layers of your own is used from Python, where Keras knows them: "
            "piggyback_tf.Backbone.from_model(model)."
        ) from error
    try:
        network = Backbone.from_model(model, image_size=image_size).model
    except ValueError as error:
        raise ValueError(f"Model file {str(path)!r} cannot be a backbone. {error}") from error
    check_finished(network, path, path.name)
    _warn_of_probabilities(str(path), network)
    return network


@functools.lru_cache(maxsize=64)
def _said(path: str) -> None:
    logging.warning(
        "%r ends in a softmax: its output are probabilities of classes, from which a task learns badly. Save it "
        "without its classifier: keras.Model(model.input, model.layers[-2].output).save('features.keras').",
        path,
    )


def _warn_of_probabilities(path: str, network: "keras.Model") -> None:
    import keras

    last = network.layers[-1]
    if isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax:
        _said(path)
