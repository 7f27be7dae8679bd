"""Any number of classes for each image in TensorFlow Datasets: a sequence of classes, or 0 or 1 for each class."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from piggyback_tf.data.images import DataError
from piggyback_tf.data.label_maps import class_names_of


class LabelError(ValueError):
    """A record holds labels that cannot be."""


def several_classes(
    feature: Any, name: str, options: Mapping[str, str], spec: str
) -> tuple[tuple[str, ...], Callable[[Any], np.ndarray]] | None:
    """Returns how a feature is read of which an image has any number of classes; None if it is another kind.

    It is a sequence of `ClassLabel`, or a vector of booleans or integers, 0 or 1 for each of the classes that
    `classes=` names.

    Args:
        feature: The feature, or None.
        name: Its name.
        options: What stands behind the `?` of the spec.
        spec: The spec, for errors.

    Returns:
        The classes, and a function from a value of the feature to 0 or 1 for each class, uint8 `[K]`, which raises
        `LabelError`.

    Raises:
        DataError: If the classes have no names, or others than the feature.
    """
    import tensorflow_datasets as tfds

    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else None
    if isinstance(inner, tfds.features.ClassLabel):
        if wrong := [option for option in ("values", "classes") if option in options]:
            raise DataError(f"{wrong[0]} in {spec!r} is for label maps, but {name!r} names its classes itself.")
        names = tuple(inner.names)
        return names, lambda value: _of_numbers(value, len(names))
    one = inner if inner is not None else feature
    if not isinstance(one, tfds.features.Tensor) or isinstance(one, tfds.features.ClassLabel):
        return None
    if len(feature.shape) != 1 or feature.shape[0] is None or np.dtype(feature.np_dtype).kind not in "biu":
        return None
    if "values" in options:
        raise DataError(f"values in {spec!r} is for label maps, but {name!r} is 0 or 1 for each class.")
    names, count = class_names_of(options, spec, "labels"), feature.shape[0]
    if len(names) != count:
        raise DataError(f"classes= of {spec!r} names {len(names)} classes, and {name!r} has 0 or 1 for {count}.")
    return names, _of_bits


def _of_numbers(value: Any, classes: int) -> np.ndarray:
    numbers = np.asarray(value, np.int64).reshape(-1)
    if wrong := [int(number) for number in numbers if not 0 <= number < classes]:
        raise LabelError(f"a record in it has the class number {wrong[0]}; there are {classes} classes")
    found = np.zeros(classes, np.uint8)
    found[numbers] = 1
    return found


def _of_bits(value: Any) -> np.ndarray:
    bits = np.asarray(value)
    if wrong := [int(bit) for bit in bits if bit not in (0, 1)]:
        raise LabelError(f"a record in it has {wrong[0]} for a class, and 0 or 1 says whether an image is of it")
    return bits.astype(np.uint8)
