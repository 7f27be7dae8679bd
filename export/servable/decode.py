"""JPEG and PNG files to prepared images within a graph, each row by itself: a broken file only flags its own row.

The bytes are those that `piggyback_tf.data.decode_image` and the operations of the augmentation give (libjpeg with the
accurate transform, EXIF orientation applied, transparency on white, 16-bit grey scaled, Pillow's resize), except for
CMYK JPEGs, whose conversion to RGB rounds otherwise by one step of 255. Flagged as broken is what cannot be decoded to
the same bytes: other formats than JPEG and PNG, images whose colour profile is for RGB and another one than sRGB, and
PNGs whose chunks programs read in different ways.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from .batches import surviving
from .headers import DEEP_GREY, DEEP_RGBA, JPEG, RGB, RGBA, Headers, read_headers
from .options import MAX_PIXELS
from .preparation import parse_preparation, prepare_in_graph

# Files that are decoded at a time: at most so many, and pixels unless it is one file.
_FILES, _PIXELS = 32, 50_000_000
# What a file takes meanwhile: measured were 9 bytes a pixel of a JPEG or an opaque PNG, and 24 if it is transparent.
BYTES_PER_PIXEL = 12
_DTYPES = {JPEG: tf.uint8, RGB: tf.uint8, RGBA: tf.uint8, DEEP_GREY: tf.uint16, DEEP_RGBA: tf.uint16}
_CHANNELS = {RGB: 3, RGBA: 4, DEEP_GREY: 1, DEEP_RGBA: 4}


def decode_batch(
    files: tf.Tensor,
    preparation: tf.Tensor,
    preparations: tuple[str, ...],
    image_shape: int | tuple[int, int],
    max_pixels: int = MAX_PIXELS,
    headers: Headers | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes and prepares a batch of files.

    Args:
        files: The content of JPEG and PNG files, string `[B]`.
        preparation: The place of each image's augmentation in `preparations`, int32 `[B]`.
        preparations: Augmentation strings.
        image_shape: Height and width `(H, W)` of the prepared images, or the side of square ones.
        max_pixels: Pixels of the largest file that is decoded; as many are decoded at a time.
        headers: What `read_headers` found in the files, if it was asked already.

    Returns:
        Images, uint8 `[B, H, W, 3]`, black where a file is broken, too large or not prepared to H x W pixels; and
        which are good, bool `[B]`.
    """
    headers, count = headers or read_headers(files, max_pixels), tf.shape(files)[0]
    height, width = (image_shape, image_shape) if isinstance(image_shape, int) else image_shape
    chains, shape = [parse_preparation(augment) for augment in preparations], [height, width, 3]

    def prepare_row(row_and_content: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        row, content = row_and_content
        image = restore(content, headers.kind[row], headers.orientation[row])
        ways = [lambda chain=chain: prepare_in_graph(image, chain, (height, width)) for chain in chains]
        return tf.switch_case(preparation[row], ways) if len(ways) > 1 else ways[0]()

    def decode_next(start: tf.Tensor, images: tf.Tensor, good: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Decodes and prepares the next files, as many as may be in memory at a time."""
        pixels = tf.cumsum(headers.pixels[start : start + _FILES])
        end = start + tf.maximum(tf.reduce_sum(tf.cast(pixels <= min(_PIXELS, max_pixels), tf.int32)), 1)
        rows, contents = decode_files(files, headers, tf.range(start, end))
        signature = tf.TensorSpec(shape, tf.uint8), tf.TensorSpec([], tf.bool)
        found = tf.map_fn(prepare_row, (rows, contents), fn_output_signature=signature, parallel_iterations=2)
        images, good = (
            tf.tensor_scatter_nd_update(*pair) for pair in zip((images, good), [rows[:, None]] * 2, found, strict=True)
        )
        return end, images, good

    start = tf.constant(0), tf.zeros(tf.stack([count, *shape]), tf.uint8), tf.zeros(count[None], tf.bool)
    shapes = tf.TensorShape([]), tf.TensorShape([None, *shape]), tf.TensorShape([None])
    _, images, good = tf.while_loop(lambda start, *_: start < count, decode_next, start, shapes, parallel_iterations=1)
    return images, good


def decode_files(files: tf.Tensor, headers: Headers, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes some files.

    Args:
        files: All files, string `[B]`.
        headers: Their headers.
        rows: Which are decoded, int32.

    Returns:
        The rows of those that are whole, in any order, and their pixels, serialised tensors: string.
    """
    kinds = tf.gather(headers.kind, rows)
    parts = []
    for kind in _DTYPES:
        chosen = tf.boolean_mask(rows, kinds == kind)
        inputs = chosen, tf.gather(files, chosen), tf.gather(headers.sides, chosen)
        parts.append(surviving(functools.partial(_decode, kind), *inputs, most=_FILES))
    rows, contents = (tf.concat(part, 0) for part in zip(*parts, strict=True))
    return rows, contents


def _decode(kind: int, row: tf.Tensor, file: tf.Tensor, sides: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the row and the pixels of a file, a serialised tensor; fails if it is not whole."""
    if kind != JPEG:
        return row, tf.io.serialize_tensor(tf.io.decode_png(file, _CHANNELS[kind], _DTYPES[kind]))
    # The decoder must find the sides whose memory was counted.
    found = tf.reduce_all(tf.io.extract_jpeg_shape(file)[:2] == sides)
    with tf.control_dependencies([tf.debugging.Assert(found, ["The header is ambiguous:", sides])]):
        # As in Pillow; TensorFlow's default is a faster transform that is off by a step here and there.
        image = tf.io.decode_jpeg(file, channels=3, dct_method="INTEGER_ACCURATE")
    return row, tf.io.serialize_tensor(image)


def restore(content: tf.Tensor, kind: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns an image, upright and opaque.

    Args:
        content: What `decode_files` returned for it.
        kind: Its kind.
        orientation: Its orientation.

    Returns:
        uint8 `[H, W, 3]`, RGB.
    """

    def parse(kind: int) -> tf.Tensor:
        return tf.ensure_shape(tf.io.parse_tensor(content, _DTYPES[kind]), [None, None, _CHANNELS.get(kind, 3)])

    ways: dict[int, Callable[[], tf.Tensor]] = {
        JPEG: lambda: parse(JPEG),
        RGB: lambda: parse(RGB),
        RGBA: lambda: _on_white(parse(RGBA)),
        DEEP_GREY: lambda: tf.repeat(_deep_grey(parse(DEEP_GREY)), 3, axis=2),
        DEEP_RGBA: lambda: _deep_on_white(parse(DEEP_RGBA)),
    }
    return _upright(tf.ensure_shape(tf.switch_case(kind, ways), [None, None, 3]), orientation)


def _deep_grey(image: tf.Tensor) -> tf.Tensor:
    """Returns 16-bit grey scaled by its range, uint8."""
    return tf.cast((tf.cast(image, tf.int32) + 128) // 257, tf.uint8)


def _deep_on_white(image: tf.Tensor) -> tf.Tensor:
    """Returns RGB of 16-bit RGBA, of which each pixel is either opaque or transparent: one of its greys is."""
    return tf.where(image[..., 3:] == 0, tf.constant(255, tf.uint8), _deep_grey(image[..., :3]))


def _on_white(image: tf.Tensor) -> tf.Tensor:
    """Returns RGB of RGBA, transparency composited on white with Pillow's rounding."""

    def composite() -> tf.Tensor:
        colour, alpha = tf.cast(image[..., :3], tf.int32), tf.cast(image[..., 3:], tf.int32)
        total = (colour * alpha + 255 * (255 - alpha) + 128) * 128
        shift = tf.bitwise.right_shift
        result = shift(shift(shift(total, 8) + total, 8), 7)
        return tf.cast(tf.where(alpha == 0, 255, result), tf.uint8)

    return tf.cond(tf.reduce_all(image[..., 3] == 255), lambda: image[..., :3], composite)


def upright_sides(headers: Headers) -> tf.Tensor:
    """Returns height and width of images as `restore` returns them, int32 `[B, 2]`."""
    return tf.where(_is_turned(headers.orientation)[:, None], tf.reverse(headers.sides, [1]), headers.sides)


def _is_turned(orientation: tf.Tensor) -> tf.Tensor:
    return (orientation >= 5) & (orientation <= 8)


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
