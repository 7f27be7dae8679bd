"""Weights as named tensors, as torchvision and timm have them: where they lie, and what is said beside them.

They are two files, here or in a repository on the Hugging Face Hub: `model.safetensors`, and `config.json`, whose
`pretrained_cfg` says how images are scaled. A pickle, as PyTorch writes it, can run any code when it is opened, so none
is. Importing this file does not load TensorFlow.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from safetensors import SafetensorError, safe_open

from piggyback_tf.backbones.errors import WeightsError
from piggyback_tf.backbones.scaling import IMAGENET, Colour, PixelStatistics
from piggyback_tf.foreign_text import reason, shown, some
from piggyback_tf.hub import cached_file
from piggyback_tf.remote import RemoteError

SUFFIX = ".safetensors"
# How names of files end that are pickles, or archives with pickles in them.
PICKLES = (".pth", ".pt", ".tar", ".bin", ".ckpt", ".pkl", ".pickle")
_MODEL, _CONFIG = "model.safetensors", "config.json"
_REPOSITORY = re.compile(r"hf://([^/@]+/[^/@]+)(?:@([^/@]+))?/?")
# Of a branch, tag or commit. None leads out of a folder: huggingface_hub keeps a file of this name.
_REVISION = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
# What timm says of how a network was built that is as usual, or of its classifier and training alone.
_USUAL = {"global_pool": "avg", "in_chans": 3}
_INDIFFERENT = ("num_classes", "drop_rate")
# Counts the batches of a training; nothing is computed with it.
_COUNTER = ".num_batches_tracked"


@dataclasses.dataclass(frozen=True)
class TensorLayout:
    """How files of tensors name a network.

    Attributes:
        architecture: What timm calls the network, in the `config.json` of its weights.
        layers: What files call each layer, without `.weight` at the end, by its canonical name here; several names
            where not all files have the same.
        classifier: How the names of tensors begin that belong to the classifier, which is left out.
        flattened: The channels of the feature map that goes flattened into a layer, by the layer's name here. In a
            file its places lie within channels, and in Keras its channels within places.
    """

    architecture: str
    layers: Mapping[str, tuple[str, ...]]
    classifier: tuple[str, ...]
    flattened: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A file of tensors that fits a network, as far as that is seen by their names.

    Attributes:
        path: Of the file.
        provenance: Where it came from: the name of the file, or `hf://OWNER/NAME@COMMIT`.
        layout: How it names the layers of the network.
        statistics: How the network is to scale its images.
        names: What the file calls each layer, by its canonical name here.
    """

    path: Path
    provenance: str
    layout: TensorLayout
    statistics: PixelStatistics
    names: Mapping[str, str]

    def needed(self, keys: Iterable[str]) -> set[str]:
        """Returns those of the tensors of the file for which the network must have a place."""
        return {key for key in keys if not key.startswith(self.layout.classifier) and not key.endswith(_COUNTER)}


def is_repository(weights: str | os.PathLike) -> bool:
    """Whether weights are asked for by a repository, `hf://OWNER/NAME` or `hf://OWNER/NAME@REVISION`."""
    return isinstance(weights, str) and _REPOSITORY.fullmatch(weights) is not None


def in_repository(weights: str, backbone: str, layout: TensorLayout) -> TensorFile:
    """Returns the tensors of a repository, which are downloaded into the cache of huggingface_hub.

    Args:
        weights: What `is_repository` is true of.
        backbone: The name of the network, for messages.
        layout: How files name it.

    Raises:
        WeightsError: If they cannot be had, or are of another network.
    """
    found = _REPOSITORY.fullmatch(weights)
    assert found, weights
    name, revision = found[1], unquote(found[2]) if found[2] else None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise WeightsError(f"{weights!r}: {shown(revision)} is no name of a branch, tag or commit.")
    try:
        config, commit = cached_file(name, _CONFIG, revision)
        # Of the same commit, whatever happens to the branch meanwhile.
        path, _ = cached_file(name, _MODEL, commit)
    except RemoteError as error:
        raise WeightsError(
            f"The weights {weights!r} of {backbone!r} could not be loaded: {error} Such a repository holds {_MODEL} "
            f"and {_CONFIG}, as timm's do; pickles, such as pytorch_model.bin, are not opened. Or pass the path of a "
            "file, or weights='random' to accept an untrained network."
        ) from error
    return _checked(path, config, f"hf://{name}@{commit}", backbone, layout)


def in_file(path: Path, backbone: str, layout: TensorLayout) -> TensorFile:
    """Returns the tensors of a file, beside which `config.json` lies.

    Args:
        path: A file that is there, and whose name ends in `.safetensors`.
        backbone: The name of the network, for messages.
        layout: How files name it.

    Raises:
        WeightsError: If they cannot be read, or are of another network.
    """
    config = path.parent / _CONFIG
    if not config.is_file():
        raise WeightsError(
            f"There is no {_CONFIG!r} beside the weights file {str(path)!r}. It says how the network is to scale its "
            f"images: {_example(layout)} if it was trained with mean and deviation of ImageNet."
        )
    return _checked(path, config, path.name, backbone, layout)


def pickle_sentence(path: Path) -> str:
    """Returns what to say of a file of weights that is a pickle: why it is not opened, and what makes tensors of it."""
    command = (
        "import torch, safetensors.torch; "
        f"state = torch.load({str(path)!r}, map_location='cpu', weights_only=True); "
        "state = state.get('state_dict', state); "
        "safetensors.torch.save_file({name.replace('module.', ''): value.contiguous() for name, value in state.items()}"
        f", {_MODEL!r})"
    )
    return (
        f"Weights file {str(path)!r} is not opened: by its name it is a pickle, which can run any code when it is "
        f'opened. Where PyTorch is, and the file can be trusted, this makes tensors of it: python -c "{command}". Put '
        f"a file {_CONFIG} beside them, such as {_example()}, and pass {_MODEL}."
    )


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Yields an open file of tensors, whose arrays are NumPy's.

    Raises:
        WeightsError: If it is none.
    """
    try:
        with safe_open(path, framework="numpy") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"Weights file {str(path)!r} is no safetensors file, or it is truncated: {reason(error)}."
        ) from error


def _checked(path: Path, config: Path, provenance: str, backbone: str, layout: TensorLayout) -> TensorFile:
    statistics = _read_config(config, provenance, backbone, layout)
    with opened(path) as tensors:
        keys = set(tensors.keys())
    names = {}
    for layer, choices in layout.layers.items():
        names[layer] = next((name for name in choices if f"{name}.weight" in keys), "")
        if not names[layer]:
            raise WeightsError(
                f"The weights {provenance!r} do not fit {backbone!r}: there is no tensor "
                f"{' or '.join(repr(f'{name}.weight') for name in choices)} in the file, for the layer {layer!r}."
            )
    file = TensorFile(path, provenance, layout, statistics, names)
    known = tuple(f"{name}." for name in names.values())
    if unknown := sorted(key for key in file.needed(keys) if not key.startswith(known)):
        raise WeightsError(
            f"The weights {provenance!r} do not fit {backbone!r}: the network has no place for "
            f"{some(unknown, form=shown)}."
        )
    return file


def _read_config(path: Path, provenance: str, backbone: str, layout: TensorLayout) -> PixelStatistics:
    """Returns how images are to be scaled.

    Raises:
        WeightsError: If it is not said, or the file is of another network.
    """
    whose = f"The {_CONFIG} of the weights {provenance!r}"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{whose} cannot be read: {reason(error)}.") from error
    cfg = config.get("pretrained_cfg") if isinstance(config, dict) else None
    if not isinstance(cfg, dict):
        raise WeightsError(f"{whose} has no pretrained_cfg. It should be such as {_example(layout)}.")
    architecture = config.get("architecture", layout.architecture)
    if architecture != layout.architecture:
        raise WeightsError(
            f"{whose} is of architecture {shown(architecture)}, and {backbone!r} takes weights of "
            f"{layout.architecture!r}."
        )
    built = config.get("model_args") or {}
    if not isinstance(built, dict) or any(
        name not in _INDIFFERENT and (name not in _USUAL or value != _USUAL[name]) for name, value in built.items()
    ):
        raise WeightsError(
            f"{whose} says that the network was built in another way than usual, as {backbone!r} is not: model_args "
            f"{shown(built)}."
        )
    mean, deviation = (_colour(cfg.get(name), name, whose) for name in ("mean", "std"))
    if min(deviation) <= 0:
        raise WeightsError(f"{whose} has a std that is not above 0: {shown(cfg['std'])}.")
    return PixelStatistics(mean, deviation)


def _colour(value: Any, name: str, whose: str) -> Colour:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_finite, value)):
        raise WeightsError(
            f"{whose} needs in pretrained_cfg, as {name}, three numbers for R, G, B, not {shown(value)}."
        )
    red, green, blue = map(float, value)
    return red, green, blue


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _example(layout: TensorLayout | None = None) -> str:
    """Returns a `config.json` as a text, with mean and deviation of ImageNet."""
    cfg = {"mean": list(IMAGENET.mean), "std": list(IMAGENET.deviation)}
    return json.dumps({"architecture": layout.architecture if layout else "resnet50", "pretrained_cfg": cfg})
