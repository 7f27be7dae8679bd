"""What the headers of image files say, read within a graph by operations that no content makes fail."""

import dataclasses

import tensorflow as tf

# Kinds of files, by how they are decoded; -1 is neither JPEG nor PNG, or too large.
JPEG, RGB, RGBA, DEEP_GREY = range(4)
# Where Pillow begins to warn of decompression bombs; an image of this size takes a quarter of a gigabyte in RGB.
MAX_PIXELS = 89_478_485
_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# The PNG signature and the header's chunk, which comes first: length, "IHDR", width, height, depth, kind of colour.
_PNG_HEADER = 26
_EXIF, _SCAN = 0xFFE1, 0xFFDA
# Start of frame: all markers from C0 to CF but those of tables (C4), extensions (C8) and arithmetic conditioning (CC).
_FRAMES = [0xFFC0 + number for number in range(16) if number not in (4, 8, 12)]
_ORIENTATION_TAG = 0x0112


@dataclasses.dataclass(frozen=True)
class Headers:
    """Headers of files.

    Attributes:
        kind: How each is decoded, int32 `[B]`; -1 if it cannot be.
        sides: Height and width, int32 `[B, 2]`.
        orientation: EXIF's orientation, int32 `[B]`; 1 where there is none.
    """

    kind: tf.Tensor
    sides: tf.Tensor
    orientation: tf.Tensor

    @property
    def pixels(self) -> tf.Tensor:
        """The number of pixels, float64 `[B]`; 0 for those that are not decoded."""
        return tf.where(self.kind >= 0, tf.reduce_prod(tf.cast(self.sides, tf.float64), axis=1), 0.0)


def read_headers(files: tf.Tensor) -> Headers:
    """Returns the headers of files, string `[B]`."""
    # What is behind a file's end reads as zeros.
    starts = tf.strings.substr(tf.strings.join([files, bytes(_PNG_HEADER)]), 0, _PNG_HEADER)
    is_jpeg = tf.strings.substr(starts, 0, len(_JPEG_START)) == _JPEG_START
    is_png = tf.strings.substr(starts, 0, len(_PNG_START)) == _PNG_START
    header = tf.cast(tf.io.decode_raw(starts, tf.uint8, fixed_length=_PNG_HEADER), tf.int32)
    png_sides = tf.stack([_big(header[:, 20:24]), _big(header[:, 16:20])], axis=1)
    jpeg_sides, orientation = tf.map_fn(
        _read_segments,
        tf.where(is_jpeg, files, ""),
        fn_output_signature=(tf.TensorSpec([2], tf.int32), tf.TensorSpec([], tf.int32)),
    )
    # With an alpha channel TensorFlow expands grey of 1, 2 or 4 bits wrongly.
    depth, grey = header[:, 24], header[:, 25] == 0
    png_kind = tf.where(grey & (depth == 16), DEEP_GREY, tf.where(grey & (depth < 8), RGB, RGBA))
    sides = tf.where(is_jpeg[:, None], jpeg_sides, png_sides)
    fits = (tf.reduce_min(sides, axis=1) > 0) & (tf.reduce_prod(tf.cast(sides, tf.float64), axis=1) <= MAX_PIXELS)
    kind = tf.where(is_jpeg, JPEG, png_kind)
    return Headers(tf.where(fits & (is_jpeg | is_png), kind, -1), sides, orientation)


def _read_segments(file: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sides of a JPEG file, `[0, 0]` if it does not say, and its orientation."""
    data = tf.io.decode_raw(file, tf.uint8)

    def before_scan(place: tf.Tensor, sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
        marker = _number(data, place, 2, True)
        return (place + 4 < tf.size(data)) & (marker >= 0xFF00) & (marker != _SCAN)

    def read_segment(
        place: tf.Tensor, sides: tf.Tensor, orientation: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        marker = _number(data, place, 2, True)
        found = tf.stack([_number(data, place + 5, 2, True), _number(data, place + 7, 2, True)])
        is_frame = tf.reduce_any(marker == _FRAMES) & tf.reduce_all(sides == 0)
        is_exif = (marker == _EXIF) & (_number(data, place + 4, 4, True) == int.from_bytes(b"Exif")) & (orientation < 0)
        orientation = tf.cond(is_exif, lambda: _exif_orientation(data, place + 10), lambda: orientation)
        # Any number of bytes FF may stand before a marker.
        step = tf.where(marker == 0xFFFF, 1, 2 + tf.maximum(_number(data, place + 2, 2, True), 2))
        return place + step, tf.where(is_frame, found, sides), orientation

    start = tf.constant(2), tf.zeros([2], tf.int32), tf.constant(-1)
    _, sides, orientation = tf.while_loop(before_scan, read_segment, start, parallel_iterations=1)
    return sides, tf.maximum(orientation, 1)


def _exif_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of a TIFF structure; 1 if there is none."""
    big = _number(data, start, 1, True) == ord("M")
    directory = start + _number(data, start + 4, 4, big)
    entries = directory + 2 + 12 * tf.range(_number(data, directory, 2, big))
    found = tf.boolean_mask(entries, _number(data, entries, 2, big) == _ORIENTATION_TAG)
    return tf.cond(tf.size(found) > 0, lambda: _number(data, found[0] + 8, 2, big), lambda: tf.constant(1))


def _big(digits: tf.Tensor) -> tf.Tensor:
    """Returns the numbers that rows of four bytes, int32 `[B, 4]`, stand for; those above 2^31 become negative."""
    return tf.reduce_sum(tf.bitwise.left_shift(digits, tf.constant([[24, 16, 8, 0]])), axis=1)


def _number(data: tf.Tensor, place: tf.Tensor | int, size: int, big: tf.Tensor | bool) -> tf.Tensor:
    """Returns the unsigned integers of `size` bytes at places, int32; what lies outside of the data reads as 0."""
    places = tf.convert_to_tensor(place)[..., None] + tf.range(size)
    inside = (places >= 0) & (places < tf.size(data))
    # Of no data at all nothing can be gathered.
    data = tf.concat([data, tf.zeros([1], tf.uint8)], 0)
    digits = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, tf.size(data) - 1)), tf.int32)
    powers = tf.range(size)
    shifts = 8 * tf.where(big, size - 1 - powers, powers)
    return tf.reduce_sum(tf.where(inside, tf.bitwise.left_shift(digits, shifts), 0), axis=-1)
