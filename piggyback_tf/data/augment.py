"""Augmentation strings: `"resize(256)|random_crop(224)|flip"`.

A deterministic operation works on a NumPy array and has one implementation, wherever it stands in
the string; those at the start are done once per image and cached. A random operation works on a
tensor and takes all its random numbers from the seed it is given.

An operation that has a `geometry` moves the label map of an image with it, and its boxes.
"""

import abc
import ast
import functools
import inspect
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from piggyback_tf.data.geometry import IDENTITY, composed, inverted, move_boxes, warp_map
from piggyback_tf.data.images import DataError
from piggyback_tf.foreign_text import shown
from piggyback_tf.registry import Registry

if TYPE_CHECKING:
    import tensorflow as tf

Size = tuple[int, int]


class Operation(abc.ABC):
    """One step of an augmentation; the arguments of its `__init__` are those in the string.

    Attributes:
        source: How the step is written.
        only_scales: Whether the step is a crop, a resize, or both: `geometry` says all of it, and turns nothing.
    """

    source: str = ""
    only_scales: bool = False

    @abc.abstractmethod
    def output_size(self, size: Size | None) -> Size | None:
        """Returns the `(height, width)` of the result for an image of this size.

        Args:
            size: `(height, width)`, or `None` if not known.

        Returns:
            The result's size, or `None` if it depends on the image.

        Raises:
            DataError: If an image of this size cannot be worked on.
        """


class DeterministicOperation(Operation):
    """A step that gives the same result for the same image."""

    @abc.abstractmethod
    def apply(self, image: np.ndarray) -> np.ndarray:
        """Returns the result, uint8 `(height, width, 3)` from the same."""

    def apply_to(self, image: np.ndarray) -> np.ndarray:
        """Returns the result of an image, or of one with its label map as a fourth channel."""
        if image.shape[2] == 3:
            return self.apply(image)
        moved = self.apply(np.ascontiguousarray(image[..., :3]))
        labels = warp_map(image[..., 3], self.geometry(image.shape[:2]), moved.shape[:2])
        return np.concatenate([moved, labels[..., None]], axis=-1)

    def geometry(self, size: Size) -> np.ndarray:
        """Returns where the pixels of the result come from, float64 `[2, 3]`; see `geometry.py`.

        Args:
            size: `(height, width)` of the image before.

        Raises:
            DataError: If the operation says nothing of it; `check_moves` finds that out early.
        """
        raise _moves_no_targets(self)


class RandomOperation(Operation):
    """A step that draws random numbers."""

    @abc.abstractmethod
    def sample(self, image: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        """Returns the result for random numbers that follow from a seed.

        Args:
            image: A uint8 tensor of shape `(height, width, 3)`.
            seed: An int64 tensor of shape `(2,)` for stateless random functions.

        Returns:
            A uint8 tensor of shape `(height, width, 3)`.
        """

    def geometry(self, size: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        """Returns where the pixels of `sample` come from for the same seed, float32 `[2, 3]`; see `geometry.py`.

        Args:
            size: int32 `[2]`, height and width of the image before.
            seed: As of `sample`.

        Raises:
            DataError: If the operation says nothing of it; `check_moves` finds that out early.
        """
        raise _moves_no_targets(self)


class CropOperation(RandomOperation):
    """A random step that looks at a part of the image alone, so that no more of it need be decoded."""

    @abc.abstractmethod
    def window(self, size: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        """Returns the part of an image that counts, int32 `[4]`: top, left, height and width, all within the image.

        Args:
            size: int32 `[2]`, height and width of the image.
            seed: As of `sample`.
        """

    @abc.abstractmethod
    def sample_window(self, part: "tf.Tensor", size: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        """Returns what `sample` does, from the part of the image that counts.

        Args:
            part: uint8, the window of the image.
            size: int32 `[2]`, height and width of the whole image.
            seed: As of `sample`.
        """

    def sample(self, image: "tf.Tensor", seed: "tf.Tensor") -> "tf.Tensor":
        import tensorflow as tf

        size = tf.shape(image)[:2]
        return self.sample_window(cut(image, self.window(size, seed)), size, seed)


def cut(image: "tf.Tensor", window: "tf.Tensor") -> "tf.Tensor":
    """Returns a part of an image: top, left, height and width, int32 `[4]`."""
    import tensorflow as tf

    return tf.slice(image, tf.pad(window[:2], [[0, 1]]), tf.concat([window[2:], [3]], 0))


def _moves_no_targets(operation: Operation) -> DataError:
    return DataError(
        f"{operation.source or type(operation).__name__} has no `geometry`, so that it cannot move label maps and "
        "boxes with their image. Give it one, or leave it out."
    )


AUGMENTATIONS: Registry[type[Operation]] = Registry("augmentation")


def register_augmentation(name: str):
    """Returns a decorator that makes an `Operation` available in augmentation strings."""
    return AUGMENTATIONS.register(name)


def augmentation_names() -> list[str]:
    """Returns how every operation is written, for example `"random_crop(size, padding=0)"`."""
    return [f"{name}{inspect.signature(AUGMENTATIONS[name])}" for name in AUGMENTATIONS.names()]


def parse_augment(spec: str) -> list[Operation]:
    """Reads an augmentation string.

    Args:
        spec: Operations separated by `|`; the empty string has none.

    Returns:
        The operations.

    Raises:
        DataError: If the string is not well formed, or an operation or its arguments do not exist.
    """
    return [_parse_operation(part.strip(), spec) for part in spec.split("|")] if spec.strip() else []


def output_size(augment: str, size: Size | None = None) -> Size | None:
    """Returns the `(height, width)` that an augmentation string ends with.

    Args:
        augment: The augmentation string.
        size: `(height, width)` of the images it starts from, if they all have the same.

    Returns:
        The size, or `None` if it depends on the image.
    """
    return chain_size(parse_augment(augment), size)


def chain_size(operations: list[Operation], size: Size | None) -> Size | None:
    """Returns the size after several operations; see `Operation.output_size`."""
    for operation in operations:
        size = operation.output_size(size)
    return size


def check_draws_nothing(operations: list[Operation], augment: str) -> None:
    """Raises a `DataError` if one of the operations of an augmentation for evaluation draws random numbers."""
    if drawn := [operation.source for operation in operations if isinstance(operation, RandomOperation)]:
        raise DataError(
            f"Only training may draw random numbers, but the augmentation {augment!r} has {', '.join(drawn)}. "
            f"For evaluation use an augmentation such as 'resize(256)|central_crop(224)'."
        )


def check_moves(operations: Sequence[Operation]) -> None:
    """Raises a `DataError` if one of the operations does not say how it moves what is in an image."""
    for operation in operations:
        if getattr(type(operation), "geometry", None) in (DeterministicOperation.geometry, RandomOperation.geometry):
            raise _moves_no_targets(operation)


def check_final_size(augment: str, size: Size | None, image_shape: Size) -> None:
    """Raises a `DataError` if images are not as large as a network takes them.

    Args:
        augment: The augmentation that they went through.
        size: Their `(height, width)`; `None` if that depends on the image.
        image_shape: The `(height, width)` that the network takes.
    """
    if size is not None and tuple(size) != tuple(image_shape):
        raise DataError(
            f"The augmentation {augment!r} gives images of {size[0]}x{size[1]} pixels, and the base takes "
            f"{image_shape[0]}x{image_shape[1]}."
        )


def at_own_size(labels: np.ndarray, operations: Iterable[Operation], size: Size) -> np.ndarray:
    """Returns a label map for an image as it was before it was prepared.

    Each pixel of the image has the label of the place that its middle went to, and one that was cut off that of the
    nearest place that was not.

    Args:
        labels: What was found in the prepared image, integers `[height, width]`.
        operations: How it was prepared.
        size: `(height, width)` of the image before.

    Raises:
        DataError: If an operation does not say where pixels go, or does not give a label map's size.
    """
    geometry, after = geometry_back(operations, size)
    if after != labels.shape:
        raise DataError(
            f"An image of {size[0]}x{size[1]} pixels becomes {after[0]}x{after[1]}, and this is a label map of "
            f"{labels.shape[0]}x{labels.shape[1]}."
        )
    return warp_map(labels, geometry, size, nearest=True)


def boxes_at_own_size(boxes: np.ndarray, operations: Iterable[Operation], size: Size) -> np.ndarray:
    """Returns boxes for an image as it was before it was prepared; the inverse of how boxes move with their image.

    Args:
        boxes: What was found in the prepared image, `[n, 4]`, each ymin, xmin, ymax and xmax in its pixels.
        operations: How it was prepared.
        size: `(height, width)` of the image before.

    Returns:
        float64 `[n, 4]`, cut to the image.

    Raises:
        DataError: If an operation does not say where pixels go.
    """
    geometry, after = geometry_back(operations, size)
    return move_boxes(boxes, geometry, size, after)[0]


def steps_of(operations: Iterable[Operation], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Returns the geometry of each of some operations, float64 `[S, 2, 3]`, and the sizes after them, int32 `[S, 2]`.

    Args:
        operations: Operations that draw no random numbers.
        size: `(height, width)` of the image before.

    Raises:
        DataError: If an operation does not say where pixels go.
    """
    operations, moves, sizes = list(operations), [], []
    check_moves(operations)
    for operation in operations:
        assert isinstance(operation, DeterministicOperation), "what draws random numbers is refused where it is read"
        moves.append(operation.geometry(size))
        after = operation.output_size(size)
        assert after is not None, "the size of an image says that of the next one"
        size = after
        sizes.append(size)
    return np.array(moves, np.float64).reshape(-1, 2, 3), np.array(sizes, np.int32).reshape(-1, 2)


def geometry_back(operations: Iterable[Operation], size: Size) -> tuple[np.ndarray, Size]:
    """Returns the geometry of the way back from a prepared image, and the `(height, width)` of that.

    Args:
        operations: How the image was prepared.
        size: `(height, width)` of the image before.

    Raises:
        DataError: If an operation does not say where pixels go.
    """
    moves, sizes = steps_of(operations, size)
    after = (int(sizes[-1, 0]), int(sizes[-1, 1])) if len(sizes) else size
    return inverted(functools.reduce(composed, moves, IDENTITY)), after


def apply_operations(operations: Iterable[Operation], image: np.ndarray) -> np.ndarray:
    """Returns an image, with or without a label map as a fourth channel, after several operations.

    Raises:
        DataError: If an operation cannot work on an image of its size.
    """
    for operation in operations:
        assert isinstance(operation, DeterministicOperation), "what draws random numbers is refused where it is read"
        operation.output_size(image.shape[:2])
        image = operation.apply_to(image)
    return image


def leading_deterministic(operations: list[Operation]) -> int:
    """Returns how many operations stand before the first random one."""
    random = (index for index, operation in enumerate(operations) if isinstance(operation, RandomOperation))
    return next(random, len(operations))


def _parse_operation(part: str, spec: str) -> Operation:
    where = f"in the augmentation {shown(spec)}"
    try:
        tree = ast.parse(part, mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        if not isinstance(call.func, ast.Name):
            raise ValueError
        name = call.func.id
        arguments = [ast.literal_eval(argument) for argument in call.args]
        keywords: dict[Any, Any] = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    # A pack may come from a stranger: what is nested too deeply is no operation either.
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise DataError(
            f"Cannot read {shown(part)} {where}. Write operations as name or name(number, ...), "
            f"with | between them, as in 'resize(256)|random_crop(224)|flip'."
        ) from None
    try:
        operation_class = AUGMENTATIONS[name]
    except ValueError as error:
        raise DataError(f"{error} It was asked for {where}.") from None
    signature = inspect.signature(operation_class)
    try:
        bound = signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise DataError(
            f"Wrong arguments of {shown(part)} {where}: {error}. It is written {name}{signature}."
        ) from None
    for key, value in bound.arguments.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"Argument {key} of {shown(part)} {where} must be a number.")
    try:
        operation = operation_class(*arguments, **keywords)
    except DataError as error:
        raise DataError(f"Wrong arguments of {shown(part)} {where}: {error}") from None
    operation.source = part
    return operation
