"""Work on strings of which some may be damaged: a dataset leaves an element out where `tf.map_fn` fails the call."""

from collections.abc import Callable

import tensorflow as tf


def surviving(
    function: Callable[..., tuple[tf.Tensor, tf.Tensor]], *parts: tf.Tensor, most: int | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Calls a function for each row and leaves those out for which it fails.

    A dataset plans its function anew in each call, half a second for one with loops and branches: it should have none.

    Args:
        function: Returns a row's number, int32, and a string.
        parts: Tensors with the same first dimension; the function takes a row of each.
        most: The largest first dimension there may be; any if None.

    Returns:
        The numbers, int32, and the strings of the rows that are left, in any order.
    """
    nothing = tf.zeros([0], tf.int32), tf.zeros([0], tf.string)
    size = tf.maximum(tf.size(parts[0]), 1) if most is None else most

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32), tf.TensorSpec([None], tf.string)])
    def opened(*found: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return found

    def compute() -> tuple[tf.Tensor, tf.Tensor]:
        dataset = tf.data.Dataset.from_tensor_slices(parts).map(function).ignore_errors()
        return dataset.batch(tf.cast(size, tf.int64)).reduce(opened(*nothing), lambda _, batch: batch)

    return tf.cond(tf.size(parts[0]) > 0, compute, lambda: nothing)
