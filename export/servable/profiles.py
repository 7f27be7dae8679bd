"""Which colour profiles are sRGB, found within a graph by operations that no content makes fail.

`piggyback_tf.data.decode_image` converts colours from a file's profile to sRGB, and leaves those of a profile alone that
is sRGB within a tolerance. A graph does not convert: it tells the files whose pixels are as they should be.
"""

import tensorflow as tf

from export.servable.batches import surviving
from export.servable.numbers import read_number
from piggyback_tf.data.images import PROFILE_TOLERANCE

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
_CURVE, _FORMULA = int.from_bytes(b"curv", "big"), int.from_bytes(b"para", "big")
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
    return (read_number(data, 16, 4, True) != int.from_bytes(b"RGB ", "big")) | _is_srgb(data)


def _is_srgb(data: tf.Tensor) -> tf.Tensor:
    """Returns whether a profile of three primaries and three curves gives all colours as sRGB does."""
    count = tf.clip_by_value(read_number(data, _TAGS, 4, True), 0, _MAX_TAGS)
    entries = _TAGS + 4 + 12 * tf.range(count)
    names = read_number(data, entries, 4, True)

    def find(name: bytes) -> tf.Tensor:
        found = tf.boolean_mask(entries, names == int.from_bytes(name, "big"))
        return tf.cond(tf.size(found) > 0, lambda: read_number(data, found[0] + 4, 4, True), lambda: tf.constant(-1))

    # With a table of colours, primaries and curves do not count.
    has_table = tf.reduce_any(
        tf.bitwise.right_shift(names, 8)[:, None] == [int.from_bytes(name, "big") for name in (b"A2B", b"D2B")]
    )
    primaries = tf.stack([_fixed(data, find(name) + 8, 3) for name in (b"rXYZ", b"gXYZ", b"bXYZ")], axis=1)
    # Level i of a channel, from 0 to 1, and what it is in linear light.
    levels = tf.cast(tf.linspace(0.0, 255.0, _LEVELS), tf.uint8)
    linear = [_curve(data, find(name), tf.cast(levels, tf.float64) / 255) for name in (b"rTRC", b"gTRC", b"bTRC")]
    colours = tf.stack([tf.reshape(x, [-1]) for x in tf.meshgrid(*linear, indexing="ij")])
    stored = tf.stack([tf.reshape(x, [-1]) for x in tf.meshgrid(*[levels] * 3, indexing="ij")])
    shown = tf.linalg.inv(tf.constant(_SRGB, tf.float64)) @ (primaries @ colours)
    shown = tf.clip_by_value(shown, 0.0, 1.0)
    shown = 255 * tf.where(shown <= 0.0031308, 12.92 * shown, 1.055 * shown ** (1 / 2.4) - 0.055)
    # What is no number compares as false.
    near = tf.reduce_all(tf.abs(shown - tf.cast(stored, tf.float64)) <= _TOLERANCE)
    in_xyz = read_number(data, 20, 4, True) == int.from_bytes(b"XYZ ", "big")
    return near & in_xyz & ~has_table & (read_number(data, _TAGS, 4, True) <= _MAX_TAGS)


def _curve(data: tf.Tensor, start: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    """Returns the values of a curve at places in [0, 1], float64; NaN if it is of another kind."""
    kind, count = read_number(data, start, 4, True), read_number(data, start + 8, 4, True)
    gamma = tf.cast(tf.where(count == 0, 256, read_number(data, start + 12, 2, True)), tf.float64) / 256
    # A table of values at equal distances.
    place = x * tf.cast(count - 1, tf.float64)
    lower = tf.clip_by_value(tf.cast(place, tf.int32), 0, tf.maximum(count - 2, 0))
    low, high = (tf.cast(read_number(data, start + 12 + 2 * (lower + i), 2, True), tf.float64) / 65535 for i in (0, 1))
    table = low + (high - low) * (place - tf.cast(lower, tf.float64))
    curve = tf.where(count <= 1, x**gamma, table)
    # A formula.
    number = read_number(data, start + 8, 2, True)
    given = tf.reduce_sum(tf.where(number == list(_GIVEN), list(_GIVEN.values()), 0))
    usual = tf.constant([1, 1, 0, 0, -1, 0, 0], tf.float64)
    g, a, b, c, d, e, f = tf.unstack(tf.where(tf.range(7) < given, _fixed(data, start + 12, 7), usual))
    formula = tf.where(x >= d, tf.maximum(a * x + b, 0.0) ** g + e, c * x + f)
    unknown = tf.fill(tf.shape(x), tf.constant(float("nan"), tf.float64))
    formula = tf.where(given > 0, formula, unknown)
    return tf.where(kind == _CURVE, curve, tf.where(kind == _FORMULA, formula, unknown))


def _fixed(data: tf.Tensor, start: tf.Tensor, count: int) -> tf.Tensor:
    """Returns numbers with 16 bits behind the point, float64 `[count]`."""
    return tf.cast(read_number(data, start + 4 * tf.range(count), 4, True), tf.float64) / 65536
