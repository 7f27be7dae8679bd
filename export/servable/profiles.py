"""Which colour profiles are sRGB, found within a graph by operations that no content makes fail.

`piggyback_tf.data.decode_image` converts colours from a file's profile to sRGB, and leaves those alone whose profile is
sRGB within a tolerance. A graph does not convert: it tells the files whose pixels are as they should be.
"""

import numpy as np
import tensorflow as tf

from piggyback_tf.data.images import PROFILE_TOLERANCE

from .batches import surviving
from .numbers import read_number

# Stricter than training, which compares colours that were rounded: what passes here passes there.
_TOLERANCE = PROFILE_TOLERANCE - 0.5
_LEVELS = 17
# Red, green and blue of sRGB in the connection space of profiles, as its own profiles have them.
_SRGB = [
    [0.43606567, 0.38514709, 0.14306641],
    [0.22248840, 0.71687317, 0.06060791],
    [0.01391602, 0.09707642, 0.71409607],
]
# Stands for a profile that is there and cannot be read: no pixels are known to be kept.
UNREAD = bytes(16) + b"RGB "
_TAGS = 128
_MAX_TAGS = 100


def _number(name: bytes) -> int:
    return int.from_bytes(name, "big")


_USED = (b"rXYZ", b"gXYZ", b"bXYZ", b"rTRC", b"gTRC", b"bTRC")
_CURVE, _FORMULA = _number(b"curv"), _number(b"para")
# Parameters of formulas by their number: those that are given, out of g, a, b, c, d, e, f; others do not occur.
_GIVEN = {0: 1, 3: 5, 4: 7}


def keep_pixels(profiles: tf.Tensor, deflated: tf.Tensor) -> tf.Tensor:
    """Returns whether images with these profiles keep their pixels in training, bool `[N]`.

    True is certain: there is no profile, it is not for RGB, or it is sRGB. False also stands for what only a colour
    management system can read.

    Args:
        profiles: Profiles, string `[N]`; an empty one is none.
        deflated: Whether each is a zlib stream, bool `[N]`.
    """
    rows, there = tf.range(tf.size(profiles)), profiles != b""
    plain = tf.boolean_mask(rows, there & ~deflated)
    streams = tf.boolean_mask(rows, there & deflated)
    whole, content = surviving(
        lambda row, stream: (row, tf.io.decode_compressed(stream, "ZLIB")), streams, tf.gather(profiles, streams)
    )
    plain, content = tf.concat([plain, whole], 0), tf.concat([tf.gather(profiles, plain), content], 0)
    good = tf.boolean_mask(plain, tf.map_fn(_keeps_pixels, content, fn_output_signature=tf.TensorSpec([], tf.bool)))
    return ~there | tf.reduce_any(rows[:, None] == good[None], axis=1)


def _keeps_pixels(profile: tf.Tensor) -> tf.Tensor:
    # What is behind its end reads as zeros.
    data = tf.io.decode_raw(tf.strings.join([profile, bytes(1)]), tf.uint8)
    return (read_number(data, 16, 4, True) != _number(b"RGB ")) | _is_srgb(data)


def _is_srgb(data: tf.Tensor) -> tf.Tensor:
    """Returns whether a profile of three primaries and three curves gives all colours as sRGB does."""
    count = read_number(data, _TAGS, 4, True)
    entries = _TAGS + 4 + 12 * tf.range(tf.clip_by_value(count, 0, _MAX_TAGS))
    names = read_number(data, entries, 4, True)
    # With a table of colours, primaries and curves do not count.
    has_table = tf.reduce_any(tf.bitwise.right_shift(names, 8)[:, None] == [_number(b"A2B"), _number(b"D2B")])
    in_xyz = read_number(data, 20, 4, True) == _number(b"XYZ ")
    # The first of each name, in one more row if there is none: then zeros are read, which are no primary and no curve.
    same = tf.concat([names[:, None] == [_number(name) for name in _USED], tf.fill([1, len(_USED)], True)], 0)
    entry = tf.gather(tf.concat([entries, [tf.size(data)]], 0), tf.argmax(same, axis=0))
    start = read_number(data, entry + 4, 4, True)
    primaries = tf.transpose(_fixed(data, start[:3, None] + 8, 3))
    # Of each channel the values at so many levels, from 0 to 1, in linear light.
    levels = tf.constant(np.linspace(0, 255, _LEVELS).astype(np.uint8) / 255)
    linear = _curves(data, start[3:, None], levels[None])
    shown = tf.linalg.inv(tf.constant(_SRGB, tf.float64)) @ (primaries @ _colours(tf.unstack(linear)))
    shown = tf.clip_by_value(shown, 0.0, 1.0)
    shown = tf.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    # What is no number compares as false.
    near = tf.reduce_all(255 * tf.abs(shown - _colours([levels] * 3)) <= _TOLERANCE)
    return near & in_xyz & ~has_table & (count <= _MAX_TAGS)


def _colours(channels: list[tf.Tensor]) -> tf.Tensor:
    """Returns all colours of the levels of three channels, `[3, N]`."""
    return tf.stack([tf.reshape(values, [-1]) for values in tf.meshgrid(*channels, indexing="ij")])


def _curves(data: tf.Tensor, start: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the values of curves at places.

    Args:
        data: The profile.
        start: Where each curve begins, int32 `[N, 1]`.
        x: Places in [0, 1], float64 `[1, M]`.

    Returns:
        float64 `[N, M]`; NaN for a curve of another kind.
    """
    kind, count = read_number(data, start, 4, True), read_number(data, start + 8, 4, True)
    gamma = tf.cast(tf.where(count == 0, 256, read_number(data, start + 12, 2, True)), tf.float64) / 256
    # A table of values at equal distances.
    place = x * tf.cast(count - 1, tf.float64)
    lower = tf.clip_by_value(tf.cast(place, tf.int32), 0, tf.maximum(count - 2, 0))
    low, high = (tf.cast(read_number(data, start + 12 + 2 * (lower + i), 2, True), tf.float64) / 65535 for i in (0, 1))
    table = low + (high - low) * (place - tf.cast(lower, tf.float64))
    curve = tf.where(count <= 1, x**gamma, table)
    # A formula.
    given = tf.reduce_sum(
        tf.where(read_number(data, start + 8, 2, True) == list(_GIVEN), list(_GIVEN.values()), 0), axis=1, keepdims=True
    )
    usual = tf.constant([1, 1, 0, 0, -1, 0, 0], tf.float64)
    parameters = tf.where(tf.range(7) < given, _fixed(data, start + 12, 7), usual)
    g, a, b, c, d, e, f = tf.split(parameters, 7, axis=1)
    formula = tf.where(x >= d, tf.maximum(a * x + b, 0.0) ** g + e, c * x + f)
    unknown = tf.constant(float("nan"), tf.float64)
    return tf.where(kind == _CURVE, curve, tf.where((kind == _FORMULA) & (given > 0), formula, unknown))


def _fixed(data: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """Returns numbers with 16 bits behind the point, float64 `[N, count]`, for places `[N, 1]`."""
    return tf.cast(read_number(data, start + 4 * tf.range(count), 4, True), tf.float64) / 65536
