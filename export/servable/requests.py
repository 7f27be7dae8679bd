"""What is asked of requests: shapes that fit together, whatever the clients of a server send."""

import tensorflow as tf


def check_image_shape(images: tf.Tensor, image_shape: tuple[int, int]) -> tf.Tensor:
    """Returns images; the call fails unless they are of shape `[B, height, width, 3]`."""
    shape, expected = tf.shape(any_shape(images)), [*image_shape, 3]
    good = (tf.size(shape) == 4) & tf.reduce_all(tf.concat([shape, [0] * 4], 0)[1:4] == expected)
    message = f"images must be [B, {expected[0]}, {expected[1]}, 3], not"
    with tf.control_dependencies([tf.debugging.Assert(good, [message, shape], 10)]):
        return tf.identity(images)


def check_images_and_tasks(
    images: tf.Tensor, task: tf.Tensor, image_shape: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Fails a call unless there are images of the right size and a task for each."""
    images = check_image_shape(images, image_shape)
    with tf.control_dependencies([images]):
        return check_same_length(images, task)


def check_same_length(images: tf.Tensor, task: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Fails a call unless both have the same first dimension, and the tasks no other."""
    counts = tf.shape(any_shape(images)), tf.shape(any_shape(task))
    good = (tf.size(counts[1]) == 1) & (tf.concat([counts[0], [-1]], 0)[0] == tf.concat([counts[1], [-2]], 0)[0])
    message = ["There must be one task for each image. Shapes of images and task:", *counts]
    with tf.control_dependencies([tf.debugging.Assert(good, message, 10)]):
        return tf.identity(images), tf.identity(task)


def any_shape(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the tensor without its static shape.

    A server feeds what a client sends, whatever shape the signature names. TensorFlow takes the signature's shape for
    granted, and would remove a check that always holds by it.
    """
    return tf.raw_ops.PlaceholderWithDefault(input=tensor, shape=tf.TensorShape(None))
