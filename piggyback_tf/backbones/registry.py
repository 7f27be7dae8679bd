"""Which backbones there are. Importing this file does not load TensorFlow."""

import dataclasses
import functools
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from piggyback_tf.backbones import own, tensor_files
from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.backbones.tensor_files import TensorFile, TensorLayout
from piggyback_tf.file_names import NETWORK_SUFFIX
from piggyback_tf.files import with_home
from piggyback_tf.registry import Registry, import_modules

if TYPE_CHECKING:
    import keras

FILE_KINDS = f".weights.h5, .h5 (as keras.applications publishes them), {NETWORK_SUFFIX} or {tensor_files.SUFFIX}"


@dataclasses.dataclass(frozen=True)
class BackboneEntry:
    """What is known about a backbone before it is built.

    Attributes:
        build: Called as `build(image_size)`, returns an untrained functional model from float32 images `[B, S, S, 3]`
            in [0, 255] to features `[B, F]`. If `weights` has `"imagenet"`, it is also called as
            `build(image_size, published)`, with `"imagenet"` or the path of an `.h5` file in the layout in which
            `keras.applications` publishes its weights, and returns the network with those. If there is a `layout`, it
            is also called as `build(image_size, statistics)`, with the `PixelStatistics` of weights.
        family: Networks of one family are built by the same code; tests take one of each.
        image_size: Default height and width of the images; None if there is none.
        min_size: Smallest image size the network can take.
        preprocessing: How images are scaled inside the model, in one line.
        weights: The named weights that exist; the first is the default. `"random"` is among them, or `"given"` is the
            only one. Those that begin with `hf://` are a repository of tensors.
        max_size: Largest image size the network can take, if there is one.
        size_hint: What to use at other image sizes, as the end of an error message.
        shipped: Path of the weights file inside the package, for `"shipped"`.
        endpoints: As of `Backbone`.
        layout: How files of tensors, as torchvision and timm write them, name the network; None if there are none.
    """

    build: "Callable[..., keras.Model]"
    family: str
    image_size: int | None
    min_size: int
    preprocessing: str
    weights: tuple[str, ...] = ("imagenet", "random")
    max_size: int | None = None
    size_hint: str = ""
    shipped: str | None = None
    endpoints: tuple[str, ...] = ()
    layout: TensorLayout | None = None


_BACKBONES: Registry[BackboneEntry] = Registry("backbone")


def register_backbone(name: str, **fields: Any) -> Callable[[Callable], Callable]:
    """Returns a decorator that registers a build function under `name`.

    Args:
        name: Name for `load_backbone`, in snake case.
        **fields: The fields of `BackboneEntry` other than `build`.

    Raises:
        ValueError: If the name is taken.
    """

    def decorator(build: Callable) -> Callable:
        _BACKBONES.register(name)(BackboneEntry(build=build, **fields))
        return build

    return decorator


def get_entry(name: str) -> BackboneEntry:
    """Returns the entry of a backbone.

    Args:
        name: Its name, or the path of the `.keras` file of a network of one's own.

    Raises:
        ValueError: If there is no backbone of this name.
        WeightsError: If there is no such file, or it holds no Keras model.
    """
    if own.is_model_file(name):
        path = own.check_model_file(name)
        size = own.input_size(path)
        return BackboneEntry(
            build=functools.partial(own.read_network, path),
            family="own",
            image_size=size,
            min_size=size or 1,
            max_size=size,
            preprocessing=own.PREPROCESSING,
            weights=(own.GIVEN,),
        )
    if os.sep in name or Path(name).suffix:
        raise ValueError(
            f"{name!r} is no name of a backbone, and a network from a file is a Keras model whose name ends in "
            f"{NETWORK_SUFFIX}; model.save({f'{Path(name).stem}{NETWORK_SUFFIX}'!r}) writes one."
        )
    _import_networks()
    return _BACKBONES[name]


def list_backbones(pattern: str = "*") -> list[str]:
    """Returns the names of the backbones that match a shell pattern, sorted.

    Args:
        pattern: For example `"resnet*"` or `"*_v2"`.
    """
    _import_networks()
    return _BACKBONES.names(pattern)


def check_request(
    name: str, weights: str | os.PathLike | None, image_size: int | None
) -> tuple[BackboneEntry, str | os.PathLike | TensorFile, int]:
    """Checks what is asked of a backbone, as far as that goes without building it. Tensors are downloaded for that.

    Args:
        name: As for `load_backbone`.
        weights: As for `load_backbone`.
        image_size: As for `load_backbone`.

    Returns:
        The backbone's entry, and weights and image size with its defaults filled in; weights that are tensors as the
        file that has them.

    Raises:
        ValueError: If there is no such network, or it cannot take images of this size.
        WeightsError: If the weights are neither a name that it has nor a file of a kind that can hold weights.
    """
    entry = get_entry(name)
    image_size = entry.image_size if image_size is None else image_size
    weights = entry.weights[0] if weights is None else weights
    if image_size is None:
        raise ValueError(
            f"{name!r} does not say how large its images are; give height and width: --image_size=SIZE, from Python "
            "image_size=SIZE."
        )
    _check_size(name, entry, image_size)
    if own.is_model_file(name) and weights != own.GIVEN:
        raise WeightsError(f"{name!r} holds the weights of its network; leave weights={os.fspath(weights)} out.")
    if tensor_files.is_repository(weights):
        return entry, tensor_files.in_repository(os.fspath(weights), name, _layout(name, entry, weights)), image_size
    if weights not in entry.weights:
        _check_not_a_name(name, entry, weights)
        path = check_file(weights)
        if path.suffix == tensor_files.SUFFIX:
            return entry, tensor_files.in_file(path, name, _layout(name, entry, weights)), image_size
    return entry, weights, image_size


def check_file(path: str | os.PathLike) -> Path:
    """Returns the path of a file, `~` being the user's folder, if it is readable and of a kind that holds weights.

    Raises:
        WeightsError: If it is not.
    """
    path = Path(with_home(path))
    if not path.exists():
        raise WeightsError(
            f"There is no weights file {str(path)!r}. Pass the path of a file that ends in {FILE_KINDS}."
        )
    if not path.is_file():
        raise WeightsError(f"{str(path)!r} is not a file. Pass the path of a file that ends in {FILE_KINDS}.")
    if path.suffix in tensor_files.PICKLES:
        raise WeightsError(tensor_files.pickle_sentence(path))
    if path.suffix == tensor_files.SUFFIX:
        return path
    if path.suffix not in (".h5", NETWORK_SUFFIX):
        raise WeightsError(f"Weights file {str(path)!r} must end in {FILE_KINDS}.")
    if path.suffix == NETWORK_SUFFIX:
        if not zipfile.is_zipfile(path):
            raise WeightsError(f"Weights file {str(path)!r} is not a Keras model file, or it is truncated.")
    else:
        import h5py

        try:
            h5py.File(path, "r").close()
        except OSError as error:
            raise WeightsError(
                f"Weights file {str(path)!r} is not an HDF5 file, or it is truncated: {error}."
            ) from error
    return path


def _layout(name: str, entry: BackboneEntry, weights: str | os.PathLike) -> TensorLayout:
    """Returns how files of tensors name a network.

    Raises:
        WeightsError: If no file does; the message names the networks that have some.
    """
    if entry.layout is not None:
        return entry.layout
    names = [other for other in list_backbones() if get_entry(other).layout]
    raise WeightsError(
        f"Backbone {name!r} takes no weights from tensors, as {os.fspath(weights)!r} holds them. Networks as PyTorch "
        f"has them do: {', '.join(names)}."
    )


def _check_size(name: str, entry: BackboneEntry, image_size: int) -> None:
    if image_size < entry.min_size or (entry.max_size is not None and image_size > entry.max_size):
        if entry.min_size == entry.max_size:
            limits = f"of {entry.min_size} x {entry.min_size} pixels only"
        elif entry.max_size is None:
            limits = f"of at least {entry.min_size} x {entry.min_size} pixels"
        else:
            limits = f"of {entry.min_size} to {entry.max_size} pixels in height and width"
        raise ValueError(
            f"{name!r} takes images {limits}. Received: image_size={image_size}. {entry.size_hint}".strip()
        )


def _check_not_a_name(name: str, entry: BackboneEntry, weights: str | os.PathLike) -> None:
    text = os.fspath(weights)
    if Path(text).exists() or os.sep in text or "." in text:
        return
    raise WeightsError(
        f"Backbone {name!r} has no weights {text!r}, and there is no such file. "
        f"Valid: {', '.join(entry.weights)}, or a file that ends in {FILE_KINDS}."
    )


@functools.cache
def _import_networks() -> None:
    # Every file in `networks` registers its own backbones, so that a new one needs no change elsewhere.
    from piggyback_tf.backbones import networks

    import_modules(networks.__name__, networks.__path__)
