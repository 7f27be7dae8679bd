"""Numbers out of bytes within a graph."""

import tensorflow as tf


@tf.function(autograph=False, reduce_retracing=True)
def read_number(data: tf.Tensor, place: tf.Tensor | int, size: int, big: tf.Tensor | bool) -> tf.Tensor:
    """Reads integers.

    Args:
        data: Bytes, uint8 `[N]`, N at least 1.
        place: Where integers begin, int32 of any shape.
        size: Bytes of each, at most four.
        big: Whether the highest byte comes first.

    Returns:
        int32, of the shape of `place`; those of four bytes are signed, others unsigned. What lies outside of the data
        reads as 0.
    """
    places = tf.convert_to_tensor(place)[..., None] + tf.range(size)
    inside = (places >= 0) & (places < tf.size(data))
    digits = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, tf.size(data) - 1)), tf.int32)
    powers = tf.range(size)
    shifts = 8 * tf.where(big, size - 1 - powers, powers)
    return tf.reduce_sum(tf.where(inside, tf.bitwise.left_shift(digits, shifts), 0), axis=-1)
