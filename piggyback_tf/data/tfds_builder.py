"""Opening a data set of TensorFlow Datasets: the spec, what is on the disk, and which of its features are meant."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from piggyback_tf.data.images import DataError
from piggyback_tf.data.label_maps import LabelReader, class_names_of, reader_of
from piggyback_tf.foreign_text import reason
from piggyback_tf.registry import unknown_name_message

HINT = "'tfds:oxford_flowers102?train=train+validation&test=test'"
SPLITS = ("train", "validation", "test")
OPTIONS = (*SPLITS, "image", "label", "values", "classes")


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which features of a data set are learned, and how they are read.

    Attributes:
        image: Name of the feature of images.
        label: Name of the feature of labels.
        class_names: The classes.
        image_size: `(height, width)` if all images have it, otherwise `None`.
        maps: How label maps are read; None where a label is the class of the whole image.
        parse: Returns the encoded image of a record and its label, the number of a class or an encoded label map.
    """

    image: str
    label: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int] | None
    maps: LabelReader | None
    parse: Callable[[bytes], tuple[bytes, int | bytes]]


def parse_options(query: str, spec: str) -> dict[str, str]:
    """Returns what stands behind the `?` of a data spec, by name.

    Raises:
        DataError: If it cannot be read.
    """
    chosen: dict[str, str] = {}
    for item in query.split("&") if query else []:
        key, equals, value = item.partition("=")
        if key not in OPTIONS or not equals or not value or key in chosen:
            raise DataError(
                f"Cannot read {item!r} in the data spec {spec!r}. Behind the ? stand train=, validation= and test= "
                f"with splits behind them, as in {HINT}, image= and label= with the names of features, and, of label "
                "maps, values= and classes=; each at most once."
            )
        chosen[key] = value
    return chosen


def open_builder(name: str, data_dir: str | None) -> Any:
    """Returns the builder of a data set, which need not be on the disk yet; see `make_prepared`.

    Raises:
        DataError: If there is no such data set.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        bare = re.split("[/:]", name)[0]
        folder = Path(data_dir) if data_dir else None
        prepared = [entry.name for entry in folder.iterdir()] if folder and folder.is_dir() else []
        known = sorted({*tfds.list_builders(with_community_datasets=False), *prepared})
        if bare in known:
            raise DataError(f"There is no {name!r} among the prepared data sets in {data_dir!r}.") from None
        raise DataError(
            unknown_name_message("data set of TensorFlow Datasets", bare, known, limit=0)
            + " All names: https://www.tensorflow.org/datasets/catalog"
        ) from None
    except Exception as error:
        # Wrong configurations and versions come as ValueError, AssertionError and others.
        raise DataError(f"TensorFlow Datasets cannot open {name!r}: {reason(error, 600)}.") from error
    return builder


def make_prepared(builder: Any, name: str, data_dir: str | None) -> None:
    """Downloads a data set that is not on the disk.

    Raises:
        DataError: If that fails.
    """
    if not builder.is_prepared():
        where = data_dir or "the default folder of TensorFlow Datasets"
        logging.warning(
            "%s is not prepared in %s and is downloaded now. Without a network this fails only after some minutes, "
            "as TensorFlow Datasets tries again and again.",
            name,
            where,
        )
        try:
            builder.download_and_prepare()
        except Exception as error:
            argument = f", data_dir={data_dir!r}" if data_dir else ""
            raise DataError(
                f"Data set {name!r} is not prepared in {where} and could not be downloaded: {reason(error, 600)}. "
                f'Prepare it where there is a network, with python -c "import tensorflow_datasets as tfds; '
                f'tfds.builder({name!r}{argument}).download_and_prepare()", '
                f"copy the folder, and pass --data_dir=FOLDER."
            ) from error


def find_fields(builder: Any, options: dict[str, str], spec: str) -> Fields:
    """Returns which features of a data set are learned: `image` and `label`, if the spec names no others.

    Args:
        builder: The data set's.
        options: What stands behind the `?` of the spec.
        spec: The spec, for errors.

    Raises:
        DataError: If there are no such features, or they are of kinds that cannot be learned.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    there = dict(features.items()) if hasattr(features, "items") else {}
    image_name, label_name = options.get("image", "image"), options.get("label", "label")
    # A label map may be one channel of an image, as in `annotation[0]`.
    label_name, channel = re.fullmatch(r"(.*?)(?:\[([012])\])?", label_name).groups()
    image, label = there.get(image_name), there.get(label_name)
    listed = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in there.items()) or "none"
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel | tfds.features.Image
    ):
        raise DataError(
            f"{spec!r} must have the features {image_name!r} (Image) and {label_name!r} (ClassLabel, or Image for "
            f"label maps), but has {listed}. Name others with ?image=FEATURE&label=FEATURE."
        )
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        raise DataError(f"The images of {spec!r} are of type {image.np_dtype}; uint8 and uint16 can be used.")
    size = tuple(image.shape[:2]) if None not in image.shape[:2] else None
    parse = _parser(features, image_name, label_name)
    if isinstance(label, tfds.features.ClassLabel):
        if wrong := [name for name in ("values", "classes") if name in options] + ["[]"] * (channel is not None):
            raise DataError(f"{wrong[0]} in {spec!r} is for label maps, but {label_name!r} is the class of an image.")
        return Fields(image_name, label_name, tuple(label.names), size, None, parse)
    names = class_names_of(options, spec)
    if channel is not None:
        options = {**options, "channel": "RGB"[int(channel)]}
    return Fields(image_name, label_name, names, size, reader_of(names, options, spec), parse)


def _parser(features: Any, image: str, label: str) -> Callable[[bytes], tuple[bytes, int | bytes]]:
    """Returns a function from a record to its encoded image and its label, as the data set's features read them."""
    import tensorflow_datasets as tfds

    is_map = isinstance(features[label], tfds.features.Image)
    wanted = tfds.decode.PartialDecoding({image: True, label: True}).extract_features(features)
    decoders = {name: tfds.decode.SkipDecoding() for name in ([image, label] if is_map else [image])}

    def parse(record: bytes) -> tuple[bytes, int | bytes]:
        try:
            example = wanted.deserialize_example_np(record, decoders=decoders)
            found = example[label]
            return bytes(example[image]), bytes(found) if is_map else int(found)
        except Exception as error:
            # Records of other features come as KeyError, AttributeError, ValueError or an error of protobuf.
            raise ValueError(f"a record in it holds no {image} and {label}: {reason(error, 200)}") from error

    return parse
