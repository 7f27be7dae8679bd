"""The operations that prepare images, as graphs that give the same bytes as those of `piggyback_tf.data`."""

from typing import Any

import tensorflow as tf

from piggyback_tf.data import DataError, Operation, parse_augment
from piggyback_tf.data.augment import chain_size, check_final_size
from piggyback_tf.data.operations import MAX_PIXELS, CentralCrop, Resize

# Pillow computes with weights that are integers of so many bits behind the point.
_PRECISION = 22


def prepare_in_graph(
    image: tf.Tensor, operations: list[Operation], image_shape: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Prepares an image; nothing about it makes the call fail.

    Args:
        image: uint8 `[H, W, 3]`, of any size.
        operations: What `parse_preparation` returned.
        image_shape: `(height, width)` that the image has to have in the end.

    Returns:
        uint8 `[height, width, 3]`, of the same bytes as `Operation.apply` returns one after another, or black if it
        cannot be prepared; and whether it could, bool.
    """
    good = tf.constant(True)
    for operation in operations:
        step: Any = _resize if isinstance(operation, Resize) else _central_crop
        image, possible = step(image, operation)
        good &= possible
    shape = [*image_shape, 3]
    good &= tf.reduce_all(tf.shape(image) == shape)
    image = tf.cond(good, lambda: image, lambda: tf.zeros(shape, tf.uint8))
    return tf.ensure_shape(image, shape), good


def way_back(sides: tf.Tensor, operations: list[Operation]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns where the pixels of an image are after it was prepared, as `scale` and `offset` of `WayBack`.

    To the bit, what `data.at_own_size` makes of `Operation.geometry`.

    Args:
        sides: Height and width of the image before, int32 `[2]`.
        operations: What `parse_preparation` returned.
    """
    scale, offset = tf.ones([2], tf.float64), tf.zeros([2], tf.float64)
    for operation in operations:
        if isinstance(operation, Resize):
            after = _resized(sides, operation)[0]
            scale *= tf.cast(sides, tf.float64) / tf.cast(after, tf.float64)
        else:
            assert isinstance(operation, CentralCrop), "others are refused where they are read"
            start, after, _ = _crop_of(sides, operation)
            offset += scale * tf.cast(start, tf.float64)
        sides = after
    return 1.0 / scale, -((1.0 / scale) * offset)


def parse_preparation(augment: str) -> list[Operation]:
    """Reads the augmentation string that prepares a task's images.

    Raises:
        DataError: If it is not well formed, or has an operation that cannot be exported.
    """
    operations = parse_augment(augment)
    for operation in operations:
        if type(operation) not in (Resize, CentralCrop):
            raise DataError(
                f"{operation.source!r} in the augmentation {augment!r} cannot be exported; "
                "an export prepares images with resize and central_crop."
            )
    return operations


def check_preparation(augment: str, image_shape: tuple[int, int]) -> None:
    """Checks that a task's images can be prepared within a graph.

    Raises:
        DataError: If not, or if they would not be of the height and width that the task takes.
    """
    check_final_size(augment, chain_size(parse_preparation(augment), None), image_shape)


def _central_crop(image: tf.Tensor, operation: CentralCrop) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the crop, and whether the image is large enough for it."""
    start, length, possible = _crop_of(tf.shape(image)[:2], operation)
    return image[start[0] : start[0] + length[0], start[1] : start[1] + length[1]], possible


def _crop_of(sides: tf.Tensor, operation: CentralCrop) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns where the crop begins, how large it is (all there is of a smaller image), and whether there is enough."""
    crop = tf.constant(operation.output_size(None))
    return tf.maximum(sides - crop, 0) // 2, tf.minimum(sides, crop), tf.reduce_all(sides >= crop)


def _resize(image: tf.Tensor, operation: Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the resized image, and whether it is not too large; then it is the image as it was."""
    sides = tf.shape(image)[:2]
    target, possible = _resized(sides, operation)
    # The order of Pillow 13, with rounding to bytes in between: along the width first, unless the height is scaled down
    # much more. (Older ones begin with the width always, which makes a difference of 1 in some pixels of tall images.)
    smaller = sides - target
    height_first = (smaller[0] > 0) & (smaller[0] > 2 * smaller[1])
    # The axis in work comes first, so that what is gathered is contiguous.
    image = tf.cond(height_first, lambda: image, lambda: tf.transpose(image, [1, 0, 2]))
    first, second = tf.unstack(tf.where(height_first, target, tf.roll(target, 1, axis=0)))
    image = _resample(tf.transpose(_resample(image, first), [1, 0, 2]), second)
    return tf.cond(height_first, lambda: tf.transpose(image, [1, 0, 2]), lambda: image), possible


def _resized(sides: tf.Tensor, operation: Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width of the resized image, and whether `Resize` takes it."""
    fixed = operation.output_size(None)
    return (tf.constant(fixed), tf.constant(True)) if fixed else _target(sides, operation)


def _target(sides: tf.Tensor, operation: Resize) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width if the shorter side gets the length that is asked for, and whether `Resize` takes it."""
    length = operation.output_size((1, 1))[0]
    # Rounded as Python does: halves to the even number.
    scaled = tf.cast(sides, tf.float64) * length / tf.cast(tf.reduce_min(sides), tf.float64)
    target = tf.maximum(tf.round(scaled), length)
    possible = tf.reduce_prod(target) <= MAX_PIXELS
    return tf.where(possible, tf.cast(target, tf.int32), sides), possible


def _resample(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resamples the first axis as Pillow's antialiased bilinear filter does, to the byte.

    Each result is a sum over `taps` neighbours with weights that fall off linearly from its place in the image; the
    weights are rounded to integers, and the sum is shifted back.
    """
    length = tf.shape(image)[0]
    first, weights = _weights(length, size)
    total = tf.fill(tf.stack([size, tf.shape(image)[1], 3]), 1 << (_PRECISION - 1))

    def add(tap: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        neighbours = tf.gather(image, tf.minimum(first + tap, length - 1))
        return tap + 1, total + tf.cast(neighbours, tf.int32) * weights[:, tap, None, None]

    taps = tf.shape(weights)[1]
    shapes = (tf.TensorShape([]), tf.TensorShape([None, None, 3]))
    _, total = tf.while_loop(lambda tap, _: tap < taps, add, (tf.constant(0), total), shapes, parallel_iterations=1)
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total, tf.constant(_PRECISION)), 0, 255), tf.uint8)


def _weights(length: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first neighbour of each result, int32 `[size]`, and the weights, int32 `[size, taps]`."""
    scale = tf.cast(length, tf.float64) / tf.cast(size, tf.float64)
    support = tf.maximum(scale, 1.0)
    centre = (tf.cast(tf.range(size), tf.float64) + 0.5) * scale
    first = tf.maximum(tf.cast(centre - support + 0.5, tf.int32), 0)
    end = tf.minimum(tf.cast(centre + support + 0.5, tf.int32), length)
    places = first[:, None] + tf.range(tf.reduce_max(end - first))
    distance = tf.abs((tf.cast(places, tf.float64) - centre[:, None] + 0.5) * (1.0 / support))
    weights = tf.where(places < end[:, None], tf.maximum(1.0 - distance, 0.0), 0.0)
    weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
    return first, tf.cast(0.5 + weights * (1 << _PRECISION), tf.int32)
