"""From a name to a network with its weights."""

import contextlib
import dataclasses
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import keras

from piggyback_tf.backbones import own, tensor_weights
from piggyback_tf.backbones import weights as weight_files
from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.backbones.paths import is_container, rename_layers
from piggyback_tf.backbones.registry import FILE_KINDS, BackboneEntry, check_file, check_request
from piggyback_tf.backbones.structure_record import Structure
from piggyback_tf.backbones.structure_text import model_structure
from piggyback_tf.backbones.tensor_files import TensorFile
from piggyback_tf.backbones.weights_hash import model_hash
from piggyback_tf.file_names import NETWORK_SUFFIX
from piggyback_tf.foreign_text import one_line

_SEED_LOCK = threading.Lock()


@dataclasses.dataclass(frozen=True, eq=False)
class Backbone:
    """A network that turns RGB images into features.

    Attributes:
        name: Name in the registry, the one given to `from_model`, or that of a `.keras` file.
        model: Functional model from float32 images `[B, S, S, 3]` in [0, 255] (uint8 is cast) to features `[B, F]`.
        image_size: Height and width S of the images.
        weights: Where the weights come from: `"imagenet"`, `"random"`, `"shipped"`, the name of a file, a repository
            with its commit, as `"hf://OWNER/NAME@COMMIT"`, or `"given"`.
        preprocessing: How images are scaled inside the model, in one line.
        endpoints: Layers on which a head for pixels builds, of a network in which paths go around all tensors of their
            stride; see `find_endpoints`.
    """

    name: str
    model: keras.Model
    image_size: int
    weights: str
    preprocessing: str
    endpoints: tuple[str, ...] = ()

    @property
    def feature_dim(self) -> int:
        """Length F of the feature vectors."""
        return int(self.model.output_shape[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return sum(
            int(variable.value.dtype.size * variable.value.shape.num_elements()) for variable in self.model.weights
        )

    @property
    def hash(self) -> str:
        """SHA-256 of the weights as they are now; see `model_hash`."""
        return model_hash(self.model)

    @property
    def structure(self) -> Structure:
        """What the network computes with its weights; see `model_structure`."""
        return model_structure(self.model, self.image_size)

    @classmethod
    def from_model(cls, model: keras.Model, name: str | None = None, image_size: int | None = None) -> "Backbone":
        """Makes a backbone of any functional or sequential Keras model. The model itself is not changed.

        Args:
            model: A built model from RGB images in [0, 255] to features `[B, F]`.
            name: Its name in packs and tables; the model's own name if None.
            image_size: Height and width of its images; needed if the model's input leaves them open.

        Raises:
            ValueError: If the model is of another kind, or its input or output has another shape.
        """
        if not (isinstance(model, keras.Model) and is_container(model)):
            raise ValueError(f"A backbone must be a functional or sequential Keras model. Received: {model!r}.")
        if not model.built:
            raise ValueError(f"Model {model.name!r} is not built. Give it an Input layer or call it once.")
        shapes = model.input_shape
        if not isinstance(shapes, tuple) or len(shapes) != 4 or shapes[-1] != 3:
            raise ValueError(
                f"Model {model.name!r} must take images of shape [B, S, S, 3]. Its input shape is {shapes}."
            )
        if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2 or model.output_shape[-1] is None:
            raise ValueError(
                f"Model {model.name!r} must end in features of shape [B, F], for instance by global average pooling. "
                f"Its output shape is {model.output_shape}."
            )
        sizes = {size for size in (*shapes[1:3], image_size) if size is not None}
        if len(sizes) != 1:
            raise ValueError(
                f"Model {model.name!r} needs one image size, for height and width. "
                f"Received: image_size={image_size}, and the model's input shape is {shapes}."
            )
        if isinstance(model, keras.Sequential):
            # The same layers, as a model whose inputs and outputs other layers can be put to.
            model = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
        return cls(name or model.name, model, int(sizes.pop()), own.GIVEN, own.PREPROCESSING)


def load_backbone(
    name: str, *, weights: str | os.PathLike | None = None, image_size: int | None = None, seed: int = 0
) -> Backbone:
    """Builds a network and gives it its weights.

    Args:
        name: One of `list_backbones()`, or the path of a `.keras` file: a network of one's own, with its weights, from
            RGB images in [0, 255] to features `[B, F]`. The backbone is then called as the file is.
        weights: `"imagenet"` (downloaded by Keras on first use), `"random"`, `"shipped"` (networks that come with the
            package), `"hf://OWNER/NAME"` (or `"hf://OWNER/NAME@REVISION"`), a repository on the Hugging Face Hub as
            timm's are, or the path of a file: `.weights.h5` or `.h5` of the plain `keras.applications` network, a
            `.keras` model that contains the network under the same layer names, or a `.safetensors` file of tensors as
            PyTorch names them, with a `config.json` beside it. The network's own default if None.
            MobileNet and MobileNetV2 have ImageNet weights of their own for some image sizes; Keras picks them.
        image_size: Height and width of the images; the network's own default if None. Needed for a `.keras` file whose
            model leaves it open.
        seed: Seed of `weights="random"`. The random states of Python, NumPy and TensorFlow are left as they are.

    Returns:
        The backbone, with canonical layer names.

    Raises:
        ValueError: If there is no such network, or it cannot take images of this size.
        WeightsError: If the weights cannot be had. Random weights are never taken instead.
    """
    entry, chosen, image_size = check_request(name, weights, image_size)
    if keras.config.image_data_format() != "channels_last":
        raise ValueError("Backbones need Keras' image_data_format 'channels_last'; see keras.config.")
    preprocessing = entry.preprocessing
    with _seeded(seed):
        if isinstance(chosen, TensorFile):
            model = entry.build(image_size, chosen.statistics)
            tensor_weights.load_tensors(model, chosen, name)
            provenance, preprocessing = chosen.provenance, chosen.statistics.description
        elif chosen in entry.weights:
            model = _load_named(name, entry, str(chosen), image_size)
            provenance = str(chosen)
        else:
            model = _load_file(name, entry, chosen, image_size)
            provenance = Path(chosen).name
    rename_layers(model)
    shown = Path(name).name if own.is_model_file(name) else name
    return Backbone(shown, model, image_size, provenance, preprocessing, entry.endpoints)


def _load_named(name: str, entry: BackboneEntry, weights: str, image_size: int) -> keras.Model:
    if weights == "shipped":
        return _load_file(name, entry, entry.shipped, image_size)
    if weights in ("random", own.GIVEN):
        return entry.build(image_size)
    try:
        return entry.build(image_size, "imagenet")
    except Exception as error:  # Keras raises bare `Exception` for downloads, h5py OSError for a broken cache.
        raise WeightsError(
            f"The ImageNet weights of {name!r} could not be loaded: {one_line(error).rstrip('.')}. "
            "Without a network, give --weights=PATH (from Python, `weights`) of a file that ends in "
            f"{FILE_KINDS}, or weights='random' to accept an untrained network."
        ) from error


def _load_file(name: str, entry: BackboneEntry, weights: str | os.PathLike, image_size: int) -> keras.Model:
    path = check_file(weights)
    if path.suffix == NETWORK_SUFFIX:
        model = entry.build(image_size)
        weight_files.load_keras_file(model, path, name)
    elif weight_files.is_published_layout(path):
        if "imagenet" not in entry.weights or path.name.endswith(".weights.h5"):
            raise WeightsError(
                f"Weights file {str(path)!r} has the layout of the .h5 files that keras.applications publishes. Only "
                "networks of keras.applications have such files, and their names do not end in .weights.h5."
            )
        try:
            model = entry.build(image_size, str(path))
        except Exception as error:
            raise WeightsError(f"Weights file {str(path)!r} does not fit {name!r}: {one_line(error)}") from error
        weight_files.check_finished(model, path, name)
    else:
        model = entry.build(image_size)
        weight_files.load_weights_file(model, path, name)
    return model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    # Unseeded initialisers and dropout layers take their seeds from Python's `random`, and from nothing else.
    with _SEED_LOCK:
        state = random.getstate()
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)
