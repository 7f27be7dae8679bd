"""Shapes and dtypes that docstrings promise, compared with what functions take and return while tests run.

A docstring says them as `uint8 [N, H, W, 3]`, with the shape in backquotes: a letter or a word is a size that is the
same everywhere in one call, a number is itself. An entry with several shapes says less than one, and is passed over.
"""

import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

# Functions of NumPy arrays. What is traced into graphs is left out: a graph compares shapes itself.
CHECKED = (
    "piggyback_tf.data.images:decode_image",
    "piggyback_tf.data.images:read_image",
    "piggyback_tf.data.geometry:warp_map",
    "piggyback_tf.evaluation.metrics:top_k_error",
    "piggyback_tf.evaluation.segment_pictures:label_png",
    "piggyback_tf.evaluation.segment_pictures:overlay_png",
    "piggyback_tf.evaluation.segment_pictures:small_image",
    "piggyback_tf.evaluation.segment_pictures:small_map",
    "piggyback_tf.evaluation.task_agnostic:entropy_change",
    "piggyback_tf.evaluation.task_agnostic:normalised_entropy",
    "piggyback_tf.evaluation.transferability:log_me",
    "piggyback_tf.packs.bank:TaskBank.predict",
    "piggyback_tf.problems.class_means:average_precision",
)
# In round brackets without a dtype it is a value, such as the size of a result.
_SHAPE = re.compile(r"(?:\b(bool|u?int\d+|float\d+)\b[^`]{0,20})?`([\[(])((?:\w+, )*\w+)[\])]`")


class ShapeError(AssertionError):
    """What a function took or returned is not what its docstring says."""


def promised(function: Callable) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Returns dtype, empty if none is said, and sizes by the name of an argument; of what is returned by `return`."""
    text, found = inspect.getdoc(function) or "", {}
    parts = re.split(r"^(Args|Returns|Raises):\n", text, flags=re.M)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    entries = re.split(r"^    (\w+): ", sections.get("Args", ""), flags=re.M)
    said = dict(zip(entries[1::2], entries[2::2], strict=True)) | {"return": sections.get("Returns", "")}
    for name, entry in said.items():
        shapes = [(dtype, sizes) for dtype, bracket, sizes in _SHAPE.findall(entry) if dtype or bracket == "["]
        if len(shapes) == 1:
            dtype, sizes = shapes[0]
            found[name] = dtype, tuple(sizes.split(", "))
    return found


def checked(function: Callable) -> Callable:
    """Returns the function with its arrays compared with its docstring in each call."""
    signature, said = inspect.signature(function), promised(function)

    @functools.wraps(function)
    def call(*arguments: Any, **words: Any) -> Any:
        # First, since what a function refuses may have any shape.
        result = function(*arguments, **words)
        sizes: dict[str, int] = {}
        given = signature.bind(*arguments, **words).arguments
        for name in said.keys() & given.keys():
            _compare(function, name, given[name], *said[name], sizes)
        if "return" in said:
            _compare(function, "return", result, *said["return"], sizes)
        return result

    return call


def _compare(
    function: Callable, name: str, value: Any, dtype: str, promise: tuple[str, ...], sizes: dict[str, int]
) -> None:
    shape = getattr(value, "shape", None)
    if shape is None:
        return
    fits = len(shape) == len(promise) and dtype in ("", str(value.dtype))
    for size, said in zip(shape, promise, strict=False):
        fits = fits and size == (int(said) if said.isdigit() else sizes.setdefault(said, size))
    if not fits:
        what = f"{dtype} [{', '.join(promise)}]".strip()
        raise ShapeError(f"{function.__qualname__}, {name}: {value.dtype} {list(shape)} is not {what}, with {sizes}.")


def check_all() -> None:
    """Puts the checks around the functions whose modules are loaded, wherever they are known by name."""
    for place in CHECKED:
        module, _, path = place.partition(":")
        if module not in sys.modules:
            continue
        owner_path, _, name = path.rpartition(".")
        owner = importlib.import_module(module)
        if owner_path:
            owner = getattr(owner, owner_path)
        function = getattr(owner, name)
        if hasattr(function, "__wrapped__"):
            continue
        wrapped = checked(function)
        setattr(owner, name, wrapped)
        for other in list(sys.modules.values()):
            if getattr(other, "__name__", "").startswith(("piggyback_tf", "export", "tests")):
                for key, value in list(vars(other).items()):
                    if value is function:
                        setattr(other, key, wrapped)
