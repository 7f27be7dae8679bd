"""Networks from files: `PATH.keras` in place of a name. Importing this file does not load TensorFlow."""

import functools
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.file_names import NETWORK_SUFFIX
from piggyback_tf.files import with_home
from piggyback_tf.foreign_text import one_line

if TYPE_CHECKING:
    import keras

# What is said of the weights of a network that brings its own.
GIVEN = "given"
PREPROCESSING = "as in the given model"
# Where Keras looks for classes by itself, and what it says of its own functions.
_KERAS_MODULES = ("keras", "keras_hub", "keras_cv", "keras_nlp", "builtins")
FROM_PYTHON = (
    "A model with layers of your own is used from Python, where Keras knows them: "
    "piggyback_tf.Backbone.from_model(model)."
)


def is_model_file(name: str | os.PathLike) -> bool:
    """Whether a backbone is asked for by the file of a Keras model; the names of networks have no dot."""
    return os.fspath(name).endswith(NETWORK_SUFFIX)


def check_model_file(path: str | os.PathLike) -> Path:
    """Returns the path of a Keras model file that is there.

    Raises:
        WeightsError: If there is none, or it is something else.
    """
    path = Path(with_home(path))
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
        WeightsError: If the file is a ZIP archive and no Keras model, or it can be seen without Keras that the model
            takes other things than RGB images, or has layers that Keras cannot know.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            model = json.loads(archive.read("config.json"))
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{str(path)!r} is not a Keras model file: {one_line(error)}") from error
    config = model.get("config") if isinstance(model, dict) else None
    _check_layers(model, path)
    shapes = _input_shapes(config)
    if len(shapes) > 1:
        raise WeightsError(
            f"Model file {str(path)!r} cannot be a backbone. It has {len(shapes)} inputs, and a backbone takes RGB "
            "images alone."
        )
    shape = shapes[0] if shapes else None
    if not isinstance(shape, list) or len(shape) != 4:
        return None
    if type(shape[3]) is int and shape[3] != 3:
        cure = ""
        if shape[3] == 1 and type(shape[1]) is int:
            cure = (
                f" Save it with a conversion in front: images = keras.Input(({shape[1]}, {shape[2]}, 3)); "
                "keras.Model(images, model(keras.ops.image.rgb_to_grayscale(images))).save('rgb.keras')."
            )
        raise WeightsError(
            f"Model file {str(path)!r} cannot be a backbone. It takes images of shape {tuple(shape)}, and a backbone "
            f"takes RGB, (None, S, S, 3).{cure}"
        )
    return shape[1] if type(shape[1]) is int and shape[1] == shape[2] else None


def _input_shapes(config: Any) -> list[Any]:
    """Returns the shapes of the inputs of a functional or sequential model."""
    layers = config.get("layers") if isinstance(config, dict) else None
    found = [
        layer.get("config", {}).get("batch_shape")
        for layer in (layers if isinstance(layers, list) else ())
        if isinstance(layer, dict) and layer.get("class_name") == "InputLayer"
    ]
    if not found and isinstance(config, dict) and "build_input_shape" in config:
        return [config["build_input_shape"]]
    return found


def _check_layers(model: Any, path: Path) -> None:
    """Raises a `WeightsError` if a model has layers that Keras will refuse to load: it takes seconds to say so."""
    # Once Keras is there, classes may have been made known to it, and it says itself which are not.
    if "keras" in sys.modules or not isinstance(model, dict):
        return
    if _is_unknown(model):
        raise WeightsError(
            f"Model file {str(path)!r} cannot be a backbone. Its model is of a class of its own, "
            f"{model['registered_name']!r}, and a backbone must be a functional or sequential model."
        )
    for entry in _entries(model.get("config")):  # Not of the rest: what it was compiled with is not loaded.
        if entry.get("class_name") == "__lambda__":
            raise WeightsError(
                f"Model file {str(path)!r} cannot be loaded: it has Python code in a Lambda layer, which Keras does "
                f"not run from a file. Put a layer of Keras in its place, such as Rescaling. {FROM_PYTHON}"
            )
        if _is_unknown(entry):
            raise WeightsError(
                f"Model file {str(path)!r} cannot be loaded: {entry['registered_name']!r} in it is not a part of "
                f"Keras. {FROM_PYTHON}"
            )


def _is_unknown(entry: dict[str, Any]) -> bool:
    """Whether what an entry describes was made known to Keras by somebody else than Keras and this package."""
    module, known_as = entry.get("module"), entry.get("registered_name")
    theirs = not isinstance(module, str) or module.partition(".")[0] not in _KERAS_MODULES
    return theirs and isinstance(known_as, str) and not known_as.startswith("piggyback_tf")


def _entries(config: Any) -> Iterator[dict[str, Any]]:
    """Yields the descriptions of all that a model is made of, however deep they lie."""
    left = [config]
    while left:
        each = left.pop()
        if isinstance(each, dict):
            if "class_name" in each:
                yield each
            left += each.values()
        elif isinstance(each, list):
            left += each


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
        raise WeightsError(f"{error} {FROM_PYTHON}") from error
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
