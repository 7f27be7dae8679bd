"""JPEG and PNG files to prepared images within a graph, each row by itself: a broken file only flags its own row.

The bytes are those that `piggyback_tf.data.decode_image` and the operations of the augmentation give (libjpeg with the
accurate transform, EXIF orientation applied, transparency on white, 16-bit grey scaled, Pillow's resize), except for
CMYK JPEGs, whose conversion to RGB rounds otherwise by one step of 255, and for orientations that stand in XMP or in a
PNG. Other formats than JPEG and PNG are flagged as broken.
"""

import tensorflow as tf

from export.servable.resize import parse_preparation, prepare

# Where Pillow begins to warn of decompression bombs; an image of this size takes a quarter of a gigabyte in RGB.
MAX_PIXELS = 89_478_485
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_ORIENTATION_TAG = 0x0112


def decode_batch(
    files: tf.Tensor, preparation: tf.Tensor, preparations: tuple[str, ...], size: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and prepares a batch of files.

    Args:
        files: The content of JPEG and PNG files, string `[B]`.
        preparation: The place of each image's augmentation in `preparations`, int32 `[B]`.
        preparations: Augmentation strings.
        size: Side S of the prepared images.

    Returns:
        Images, uint8 `[B, S, S, 3]`, black where a file is broken, too large or not prepared to S x S pixels; and
        which are good, bool `[B]`.
    """
    operations = [parse_preparation(augment) for augment in preparations]

    def decode(row: tf.Tensor, file: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = decode_file(file)
        branches = [lambda chain=chain: prepare(image, chain) for chain in operations]
        image = tf.switch_case(place, branches) if len(branches) > 1 else branches[0]()
        return row, tf.ensure_shape(image, [size, size, 3])

    count = tf.shape(files)[0]
    # An error of one element would fail the whole batch in `tf.map_fn`; a dataset can leave the element out.
    dataset = tf.data.Dataset.from_tensor_slices((tf.range(count), files, preparation))
    dataset = dataset.map(decode).ignore_errors().batch(tf.cast(tf.maximum(count, 1), tf.int64))
    nothing = tf.zeros([0], tf.int32), tf.zeros([0, size, size, 3], tf.uint8)
    rows, images = _only_batch(dataset, nothing)
    images = tf.scatter_nd(rows[:, None], images, tf.stack([count, size, size, 3]))
    good = tf.scatter_nd(rows[:, None], tf.ones_like(rows), count[None]) > 0
    return images, good


def _only_batch(dataset: tf.data.Dataset, nothing: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    """Returns the one batch of a dataset, or `nothing` if it has none."""

    @tf.function(input_signature=[tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in nothing])
    def opened(*parts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return parts

    return dataset.reduce(opened(*nothing), lambda _, batch: batch)


def decode_file(file: tf.Tensor) -> tf.Tensor:
    """Returns the image in a JPEG or PNG file, upright and opaque.

    Args:
        file: The file's content, a string.

    Returns:
        uint8 `[H, W, 3]`, RGB. Of a broken file, or one of more than `MAX_PIXELS`, which is known before anything is
        decoded, the operation fails.
    """
    starts = tf.strings.substr(file, 0, len(_JPEG)) == _JPEG
    image = tf.cond(starts, lambda: _decode_jpeg(file), lambda: _decode_png(file))
    return tf.ensure_shape(image, [None, None, 3])


def _check_pixels(height: tf.Tensor, width: tf.Tensor) -> tf.Operation:
    height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    good = (height > 0) & (width > 0) & (height <= MAX_PIXELS) & (width <= MAX_PIXELS)
    return tf.debugging.Assert(good & (height * width <= MAX_PIXELS), ["The image is too large:", height, width])


def _decode_jpeg(file: tf.Tensor) -> tf.Tensor:
    sides = tf.io.extract_jpeg_shape(file)
    with tf.control_dependencies([_check_pixels(sides[0], sides[1])]):
        # As in Pillow; TensorFlow's default is a faster transform that is off by a step here and there.
        image = tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")
    return _upright(image, _jpeg_orientation(file))


def _decode_png(file: tf.Tensor) -> tf.Tensor:
    is_png = tf.strings.substr(file, 0, len(_PNG)) == _PNG
    with tf.control_dependencies([tf.debugging.Assert(is_png, ["The file is neither JPEG nor PNG."])]):
        # The header's chunk comes first: length, "IHDR", width, height, bits a channel, kind of colour.
        header = tf.cast(tf.io.decode_raw(tf.strings.substr(file, 16, 10), tf.uint8), tf.int32)
    width, height = _number(header, 0, 4, True), _number(header, 4, 4, True)
    with tf.control_dependencies([_check_pixels(height, width)]):
        depth, grey = tf.identity(header[8]), tf.equal(header[9], 0)
    # With an alpha channel TensorFlow expands grey of 1, 2 or 4 bits wrongly.
    kind = tf.where(grey & (depth == 16), 0, tf.where(grey & (depth < 8), 1, 2))
    kinds = [
        lambda: _deep_grey(tf.io.decode_png(file, channels=1, dtype=tf.uint16)),
        lambda: tf.io.decode_png(file, channels=3),
        lambda: _on_white(tf.io.decode_png(file, channels=4)),
    ]
    return tf.switch_case(kind, kinds)


def _deep_grey(image: tf.Tensor) -> tf.Tensor:
    """Returns RGB of 16-bit grey, scaled by its range."""
    return tf.repeat(tf.cast((tf.cast(image, tf.int32) + 128) // 257, tf.uint8), 3, axis=2)


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Returns RGB of RGBA, transparency composited on white with Pillow's rounding."""

    def composite() -> tf.Tensor:
        colour, alpha = tf.cast(image[..., :3], tf.int32), tf.cast(image[..., 3:], tf.int32)
        total = (colour * alpha + 255 * (255 - alpha) + 128) * 128
        shift = tf.bitwise.right_shift
        result = shift(shift(shift(total, 8) + total, 8), 7)
        return tf.cast(tf.where(alpha == 0, 255, result), tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], composite)


def _upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns the image turned as EXIF's orientation, 1 to 8, says."""

    def turned() -> tf.Tensor:
        turned = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        for axis, flipped in ((1, (2, 3, 6, 7)), (0, (3, 4, 7, 8))):
            where = tf.reduce_any(orientation == list(flipped))
            turned = tf.cond(
                where, lambda axis=axis, image=turned: tf.reverse(image, [axis]), lambda image=turned: image
            )
        return turned

    return tf.cond((orientation >= 2) & (orientation <= 8), turned, lambda: image)


def _jpeg_orientation(file: tf.Tensor) -> tf.Tensor:
    """Returns EXIF's orientation of a JPEG file that was found whole; 1 if there is none."""
    data = tf.io.decode_raw(file, tf.uint8)
    end = tf.size(data)

    def is_exif(place: tf.Tensor) -> tf.Tensor:
        return (_number(data, place, 2, True) == 0xFFE1) & (
            tf.strings.substr(file, tf.minimum(place + 4, end), 6) == b"Exif\0\0"
        )

    def searching(place: tf.Tensor) -> tf.Tensor:
        marker = _number(data, place, 2, True)
        # The scan (FFDA) is behind all segments that say something of the image.
        return (place + 10 < end) & (marker >= 0xFF00) & (marker != 0xFFDA) & ~is_exif(place)

    def following(place: tf.Tensor) -> tuple[tf.Tensor]:
        return (place + 2 + tf.maximum(_number(data, place + 2, 2, True), 2),)

    (place,) = tf.while_loop(searching, following, (tf.constant(2),), parallel_iterations=1)
    return tf.cond(is_exif(place), lambda: _exif_orientation(data, place + 10), lambda: tf.constant(1))


def _exif_orientation(data: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of a TIFF structure; 1 if there is none."""
    big = _number(data, start, 1, True) == ord("M")
    directory = start + _number(data, start + 4, 4, big)
    entries = directory + 2 + 12 * tf.range(_number(data, directory, 2, big))
    found = tf.boolean_mask(entries, _number(data, entries, 2, big) == _ORIENTATION_TAG)
    return tf.cond(tf.size(found) > 0, lambda: _number(data, found[0] + 8, 2, big), lambda: tf.constant(1))


def _number(data: tf.Tensor, place: tf.Tensor | int, size: int, big: tf.Tensor | bool) -> tf.Tensor:
    """Returns the unsigned integers of `size` bytes at places, int32; what lies outside of the data reads as 0."""
    places = tf.convert_to_tensor(place)[..., None] + tf.range(size)
    inside = (places >= 0) & (places < tf.size(data))
    digits = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, tf.maximum(tf.size(data) - 1, 0))), tf.int32)
    powers = tf.range(size)
    shifts = 8 * tf.where(big, size - 1 - powers, powers)
    return tf.reduce_sum(tf.where(inside, tf.bitwise.left_shift(digits, shifts), 0), axis=-1)
