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
from piggyback_tf.data.tfds_labels import LabelError, several_classes
from piggyback_tf.foreign_text import reason
from piggyback_tf.registry import unknown_name_message

HINT = "'tfds:oxford_flowers102?train=train+validation&test=test'"
SPLITS = ("train", "validation", "test")
OPTIONS = (*SPLITS, "image", "label", "values", "classes", "boxes")
# Features of a box that say that it is to be ignored.
_IGNORED = ("is_crowd", "is_difficult")


@dataclasses.dataclass(frozen=True)
class Fields:
    """Which features of a data set are learned, and how they are read.

    Attributes:
        image: Name of the feature of images.
        label: Name of the feature of labels; with boxes, of the class of one.
        class_names: The classes.
        image_size: `(height, width)` if all images have it, otherwise `None`.
        maps: How label maps are read; None where a label is the class of the whole image.
        boxes: Name of the feature of boxes; None where there are none.
        parse: Returns the encoded image of a record and its label: the number of a class, an encoded label map, 0 or 1
            for each class, or boxes, float32 `[n, 6]`, whose edges are parts of the height and width.
        several: Whether an image may be of any number of classes.
    """

    image: str
    label: str
    class_names: tuple[str, ...]
    image_size: tuple[int, int] | None
    maps: LabelReader | None
    boxes: str | None
    parse: Callable[[bytes], tuple[bytes, int | bytes | np.ndarray]]
    several: bool = False

    @property
    def target(self) -> str:
        """What is to be found in an image, a key of `TARGETS`."""
        if self.boxes is not None:
            return "boxes"
        if self.maps is not None:
            return "map"
        return "multilabel" if self.several else "class"


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
                f"with splits behind them, as in {HINT}, image=, label= and boxes= with the names of features, and, of "
                "label maps, values= and classes=; each at most once."
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
    if "boxes" in options:
        return _box_fields(features, there, options, spec)
    # A label map may be one channel of an image, as in `annotation[0]`.
    label_name, channel = re.fullmatch(r"(.*?)(?:\[([012])\])?", label_name).groups()
    image, label = there.get(image_name), there.get(label_name)
    several = several_classes(label, label_name, options, spec) if channel is None else None
    known = several is not None or isinstance(label, tfds.features.ClassLabel | tfds.features.Image)
    if not isinstance(image, tfds.features.Image) or not known:
        raise DataError(
            f"{spec!r} must have the features {image_name!r} (Image) and {label_name!r} (ClassLabel, or Image for "
            "label maps, or a sequence of ClassLabel or a vector of 0 and 1 for any number of classes), but has "
            f"{_listed(there)}. Name others with ?image=FEATURE&label=FEATURE."
        )
    size = _image_size(image, spec)
    if several is not None:
        names, hot = several
        parse = _parser(features, image_name, label_name, hot)
        return Fields(image_name, label_name, names, size, None, None, parse, several=True)
    read: Callable[[Any], int | bytes] = bytes if isinstance(label, tfds.features.Image) else int
    parse = _parser(features, image_name, label_name, read)
    if isinstance(label, tfds.features.ClassLabel):
        if wrong := [name for name in ("values", "classes") if name in options] + ["[]"] * (channel is not None):
            raise DataError(f"{wrong[0]} in {spec!r} is for label maps, but {label_name!r} is the class of an image.")
        return Fields(image_name, label_name, tuple(label.names), size, None, None, parse)
    names = class_names_of(options, spec)
    if channel is not None:
        options = {**options, "channel": "RGB"[int(channel)]}
    return Fields(image_name, label_name, names, size, reader_of(names, options, spec), None, parse)


def _listed(features: dict[str, Any]) -> str:
    return ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items()) or "none"


def _image_size(image: Any, spec: str) -> tuple[int, int] | None:
    """Returns the `(height, width)` of all images of a feature, None if they have several.

    Raises:
        DataError: If its numbers are none of images.
    """
    if np.dtype(image.np_dtype) not in (np.uint8, np.uint16):
        raise DataError(f"The images of {spec!r} are of type {image.np_dtype}; uint8 and uint16 can be used.")
    return tuple(image.shape[:2]) if None not in image.shape[:2] else None


def _box_fields(features: Any, there: dict[str, Any], options: dict[str, str], spec: str) -> Fields:
    """Returns the features of images with boxes: a sequence in which each has a `bbox` and a class."""
    import tensorflow_datasets as tfds

    if wrong := [name for name in ("values", "classes") if name in options]:
        raise DataError(f"{wrong[0]}= in {spec!r} is for label maps, not for boxes.")
    image_name, name, label_name = options.get("image", "image"), options["boxes"], options.get("label", "label")
    image, inner = there.get(image_name), getattr(there.get(name), "feature", None)
    inside = dict(inner.items()) if hasattr(inner, "items") else {}
    box, label = inside.get("bbox"), inside.get(label_name)
    known = isinstance(box, tfds.features.BBoxFeature) and isinstance(label, tfds.features.ClassLabel)
    if not isinstance(image, tfds.features.Image) or not known:
        raise DataError(
            f"{spec!r} must have the features {image_name!r} (Image) and {name!r}, a sequence with 'bbox' "
            f"(BBoxFeature) and {label_name!r} (ClassLabel) in it, but has {_listed(there)}, and in {name!r} "
            f"{_listed(inside)}. Name others with ?image=FEATURE&boxes=FEATURE&label=FEATURE."
        )
    form = getattr(box.bbox_format, "value", box.bbox_format)
    if form != "REL_YXYX":
        raise DataError(f"The boxes of {spec!r} are in the form {form}; those in REL_YXYX can be used.")
    ignored = [key for key in _IGNORED if key in inside]
    wanted = {image_name: True, name: dict.fromkeys(("bbox", label_name, *ignored), True)}
    found = tfds.decode.PartialDecoding(wanted).extract_features(features)
    decoders = {image_name: tfds.decode.SkipDecoding()}

    def parse(record: bytes) -> tuple[bytes, np.ndarray]:
        try:
            example = found.deserialize_example_np(record, decoders=decoders)
            own = example[name]
            edges = np.asarray(own["bbox"], np.float32).reshape(-1, 4)
            numbers = np.asarray(own[label_name], np.float32)[:, None]
            flags = [np.asarray(own[key], bool) for key in ignored]
            skipped = np.any([np.zeros(len(edges), bool), *flags], axis=0).astype(np.float32)[:, None]
            return bytes(example[image_name]), np.concatenate([edges, numbers, skipped], axis=1)
        except Exception as error:
            raise ValueError(f"a record in it holds no {image_name} and {name}: {reason(error, 200)}") from error

    return Fields(image_name, label_name, tuple(label.names), _image_size(image, spec), None, name, parse)


def _parser(features: Any, image: str, label: str, read: Callable[[Any], Any]) -> Callable[[bytes], tuple[bytes, Any]]:
    """Returns a function from a record to its encoded image and its label, as the data set's features read them.

    Args:
        features: The features.
        image: Name of the feature of images.
        label: Name of the feature of labels.
        read: Returns a label as it is learned, from what the feature gives.
    """
    import tensorflow_datasets as tfds

    is_map = isinstance(features[label], tfds.features.Image)
    wanted = tfds.decode.PartialDecoding({image: True, label: True}).extract_features(features)
    decoders = {name: tfds.decode.SkipDecoding() for name in ([image, label] if is_map else [image])}

    def parse(record: bytes) -> tuple[bytes, Any]:
        try:
            example = wanted.deserialize_example_np(record, decoders=decoders)
            return bytes(example[image]), read(example[label])
        except LabelError:
            raise
        except Exception as error:
            # Records of other features come as KeyError, AttributeError, ValueError or an error of protobuf.
            raise ValueError(f"a record in it holds no {image} and {label}: {reason(error, 200)}") from error

    return parse
