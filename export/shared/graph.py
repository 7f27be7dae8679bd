"""What the graphs of all exports have in common: which images they answer."""

import tensorflow as tf


def good_images(images: tf.Tensor) -> tf.Tensor:
    """Returns which images hold nothing but numbers in [0, 255], bool `[B]`."""
    if not images.dtype.is_floating:
        return tf.fill(tf.shape(images)[:1], True)
    # NaN compares as false.
    return tf.reduce_all((images >= 0) & (images <= 255), axis=[1, 2, 3])
