"""The description of a task, all but its arrays: what it must hold, in a pack and in every version of its file."""

import datetime
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from piggyback_tf.backbones.structure_record import Structure
from piggyback_tf.files import is_text
from piggyback_tf.foreign_text import shown
from piggyback_tf.head_spec import DENSE, HeadSpec
from piggyback_tf.packs.arrays import DTYPES
from piggyback_tf.packs.bits import MASK_VALUES
from piggyback_tf.packs.container import FORMAT_VERSION, PackError, check_json
from piggyback_tf.targets import USUAL

MASK_KINDS = ("none", *MASK_VALUES)
# Those that hold whatever is written into them.
DICTS = ("settings", "errors", "versions")
# The format version since which the description has an entry, where that is not the first, and what older files mean.
_SINCE: Mapping[str, tuple[int, Any]] = {
    "dtype": (2, "float32"),
    "base_structure": (3, None),
    "base_answers": (3, None),
    "problem": (4, USUAL),
    "head_spec": (4, None),
}
_TEXTS = ("task", "base_name", "base_hash", "base_weights", "method", "mask_kind", "preprocessing", "problem")


def fields_of_version(fields: Iterable[str], version: int) -> tuple[str, ...]:
    """Returns those of some fields of a `TaskPack` that the description of a format version has as entries."""
    return tuple(field for field in fields if _SINCE.get(field, (1, None))[0] <= version)


def with_defaults(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a description with what it means of the entries that came after its version."""
    return {field: default for field, (_, default) in _SINCE.items()} | dict(document)


def head_spec_of(document: Mapping[str, Any]) -> HeadSpec:
    """Returns which head a task has; a Dense layer for its classes where the description says nothing.

    Args:
        document: A description that was checked.
    """
    spec = document["head_spec"]
    return HeadSpec(DENSE, len(document["class_names"])) if spec is None else HeadSpec.from_json(spec)


def check_fields(fields: Mapping[str, Any]) -> None:
    """Checks the fields of a `TaskPack` that are no arrays.

    Args:
        fields: Their values by name.

    Raises:
        PackError: With the first that is wrong.
    """
    for field in _TEXTS:
        if not isinstance(fields[field], str) or not fields[field]:
            raise PackError(f"{field} must be a text that is not empty. Received: {shown(fields[field])}.")
    # An empty string stands for no augmentation.
    if not isinstance(fields["eval_augment"], str):
        raise PackError(f"eval_augment must be an augmentation string. Received: {shown(fields['eval_augment'])}.")
    check_task_name(fields["task"])
    if fields["mask_kind"] not in MASK_KINDS:
        raise PackError(f"mask_kind must be one of {', '.join(MASK_KINDS)}. Received: {shown(fields['mask_kind'])}.")
    names = fields["class_names"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PackError("class_names must be a list of texts that is not empty.")
    if len(set(names)) != len(names):
        raise PackError("class_names must be different from one another.")
    if fields["head_spec"] is not None:
        if not isinstance(fields["head_spec"], dict):
            raise PackError(f"head_spec must be a dict or null. Received: {shown(fields['head_spec'])}.")
        try:
            spec = HeadSpec.from_json(fields["head_spec"])
        except ValueError as error:
            raise PackError(f"head_spec is wrong: {error}") from error
        if spec.classes != len(names):
            raise PackError(f"The head has {spec.classes} classes, and the task {len(names)}.")
    if type(fields["image_size"]) is not int or not 1 <= fields["image_size"] < 1 << 31:
        raise PackError(f"image_size must be a positive integer. Received: {shown(fields['image_size'])}.")
    if fields["threshold"] is not None and not _is_number(fields["threshold"]):
        raise PackError(f"threshold must be a finite number or None. Received: {shown(fields['threshold'])}.")
    for field in DICTS:
        if not isinstance(fields[field], dict):
            raise PackError(f"{field} must be a dict. Received: {shown(fields[field])}.")
    for errors in fields["errors"].values():
        if not isinstance(errors, dict) or not all(map(_is_number, errors.values())):
            raise PackError("errors must map the name of a split to a dict of errors, which are numbers.")
    version = fields["format_version"]
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise PackError(f"format_version must be 1 to {FORMAT_VERSION}. Received: {shown(version)}.")
    if fields["dtype"] not in DTYPES:
        raise PackError(f"dtype must be one of {', '.join(DTYPES)}. Received: {shown(fields['dtype'])}.")
    try:
        Structure.from_json(fields)
    except ValueError as error:
        raise PackError(f"{error}.") from error
    try:
        datetime.datetime.fromisoformat(fields["created"])
    except (TypeError, ValueError) as error:
        raise PackError(f"created must be a date in ISO 8601. Received: {shown(fields['created'])}.") from error
    try:
        check_json(fields)
    except ValueError as error:
        raise PackError(f"The description of the task cannot be written as JSON: {error}.") from error


def check_task_name(name: str) -> str:
    """Returns the name of a task if it can be part of a file name.

    Raises:
        PackError: If it is empty, begins with a dot, or has slashes, control characters or what is no text in it.
    """
    strange = any(character in "/\\\x7f" or character < " " for character in name)
    if not name or name.startswith(".") or strange or not is_text(name):
        raise PackError(
            "A task's name is part of a file name: no slashes, no control characters, no dot in front, only UTF-8. "
            f"Received: {shown(name)}."
        )
    return name


def _is_number(value: Any) -> bool:
    # NaN is not, nor an integer that is too large for a floating point number.
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
