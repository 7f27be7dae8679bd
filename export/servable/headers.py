"""What the headers of image files say, read within a graph by operations that no content makes fail.

The rules are those of `piggyback_tf.data.images`: where a segment ends, which of several counts, what turns an image.
"""

import dataclasses
import functools
import zlib

import numpy as np
import tensorflow as tf

from piggyback_tf.data.images import EXIF_START, JPEG_START, PNG_START, PROFILE_START

from .numbers import read_number
from .options import MAX_PIXELS
from .profiles import UNREAD, keep_pixels

# Kinds of files, by how they are decoded; -1 is neither JPEG nor PNG, too large, or nothing that is decoded alike.
JPEG, RGB, RGBA, DEEP_GREY, DEEP_RGBA = range(5)
_EXIF, _PROFILE, _SCAN = 0xFFE1, 0xFFE2, 0xFFDA
# Start of frame: all markers from C0 to CF but those of tables (C4), extensions (C8) and arithmetic conditioning (CC).
_FRAMES = [0xFFC0 + number for number in range(16) if number not in (4, 8, 12)]
_PLTE, _TRNS, _ICCP, _EXIF_CHUNK, _IDAT, _IEND = (
    int.from_bytes(name, "big") for name in (b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"IDAT", b"IEND")
)
# Kinds of colour of a PNG; those with this bit have an alpha channel.
_GREY, _COLOUR, _PALETTE, _ALPHA = 0, 2, 3, 4
_ORIENTATION_TAG, _SHORT, _LONG = 0x0112, 3, 4
# Segments or chunks that are looked at; a file that was made to have more would keep a server busy.
_MOST_PARTS = 20_000
# A deflated profile of sRGB has some kilobytes; what is longer is another one, and might unpack to gigabytes.
_MOST_DEFLATED = 65536
_NOWHERE = (-1, 0)
_FOUND = (
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([2], tf.int32),
    tf.TensorSpec([], tf.int32),
    tf.TensorSpec([], tf.string),
)
# The register of a CRC-32 after each byte; `crc32` begins and ends with all bits inverted.
_CRC = np.array([zlib.crc32(bytes([i ^ 0xFF])) ^ 0xFFFFFFFF ^ 0x00FFFFFF for i in range(256)], np.uint32)
Found = tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]


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


def read_headers(files: tf.Tensor, max_pixels: int = MAX_PIXELS) -> Headers:
    """Returns the headers of files, string `[B]`, of which those with more pixels are not decoded."""
    kind, sides, orientation, profile = tf.map_fn(_read, files, fn_output_signature=_FOUND)
    # Transparent grey of 16 bits becomes four channels of it, and takes twice the memory of other files meanwhile.
    pixels = tf.reduce_prod(tf.cast(sides, tf.float64), axis=1) * tf.cast(tf.where(kind == DEEP_RGBA, 2, 1), tf.float64)
    fits = (tf.reduce_min(sides, axis=1) > 0) & (pixels <= max_pixels)
    fits &= keep_pixels(profile, deflated=kind != JPEG)
    return Headers(tf.where(fits, kind, -1), sides, orientation)


def _read(file: tf.Tensor) -> Found:
    """Returns kind, sides, orientation and colour profile of a file; the profile is empty if it does not count."""
    data = tf.io.decode_raw(file, tf.uint8)
    nothing = tf.constant(-1), tf.zeros([2], tf.int32), tf.constant(1), tf.constant(b"")

    is_jpeg, is_png = (tf.strings.substr(file, 0, len(start)) == start for start in (JPEG_START, PNG_START))
    otherwise = functools.partial(tf.cond, is_png, lambda: _read_png(data, file), lambda: nothing)
    return tf.cond(is_jpeg, lambda: _read_jpeg(data, file), otherwise)


def _read_jpeg(data: tf.Tensor, file: tf.Tensor) -> Found:
    def before_scan(place: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        marker = read_number(data, place, 2, True)
        is_last = ((marker > 0xFF00) & (marker < 0xFFC0)) | ((marker >= 0xFFD0) & (marker <= _SCAN))
        return (place + 4 < tf.size(data)) & ~is_last

    def read_segment(place: tf.Tensor, frame: tf.Tensor, exif: tf.Tensor, profile: tf.Tensor) -> tuple[tf.Tensor, ...]:
        marker, length = read_number(data, place, 2, True), read_number(data, place + 2, 2, True)
        # Any number of bytes FF may stand before a marker, and decoders skip what is none.
        skipped = tf.where((marker < 0xFF00) | (marker == 0xFFFF), 1, tf.where(marker == 0xFF00, 2, 0))
        end = place + tf.where(skipped > 0, skipped, 2 + tf.maximum(length, 2))
        content = tf.stack([place + 4, tf.minimum(end, tf.size(data)) - place - 4])
        sides = read_number(data, place + 5, 2, True), read_number(data, place + 7, 2, True)
        is_frame = tf.reduce_any(marker == _FRAMES) & tf.reduce_all(frame == 0)
        is_exif = (marker == _EXIF) & (exif[0] < 0) & _begins(data, content, EXIF_START)
        is_profile = (marker == _PROFILE) & _begins(data, content, PROFILE_START)
        return (
            end,
            tf.where(is_frame, tf.stack([*sides, read_number(data, place + 9, 1, True)]), frame),
            tf.where(is_exif, content + _without(EXIF_START), exif),
            tf.where(is_profile, content + _without(PROFILE_START), profile),
        )

    nowhere = tf.constant(_NOWHERE)
    start = tf.constant(2), tf.zeros([3], tf.int32), nowhere, nowhere
    place, frame, exif, profile = tf.while_loop(
        before_scan, read_segment, start, maximum_iterations=_MOST_PARTS, parallel_iterations=1
    )
    channels = frame[2]
    # libjpeg goes on where other programs give up.
    sound = (read_number(data, place, 2, True) == _SCAN) & tf.reduce_any(channels == [1, 3, 4])
    # A profile begins with its part's number and how many there are; none of sRGB needs several.
    alone = read_number(data, profile[0], 2, True) == 0x0101
    found = tf.where(alone, _part(file, profile + [2, -2]), tf.where(profile[0] >= 0, UNREAD, b""))
    found = tf.where(channels == 3, found, b"")
    return tf.where(sound, JPEG, -1), frame[:2], _orientation(data, exif), found


def _read_png(data: tf.Tensor, file: tf.Tensor) -> Found:
    # EXIF may stand behind the image, hundreds of chunks away; most files have none.
    count = tf.maximum(tf.size(data) - 3, 0)
    letters = [data[i : count + i] == letter for i, letter in enumerate(b"eXIf")]
    has_exif = tf.reduce_any(letters[0] & letters[1] & letters[2] & letters[3])

    def goes_on(place: tf.Tensor, *_: tf.Tensor) -> tf.Tensor:
        length = read_number(data, place, 4, True)
        whole = (length >= 0) & (length <= tf.size(data) - 12 - place)
        return whole & (has_exif | (read_number(data, place + 4, 4, True) != _IDAT))

    def read_chunk(
        place: tf.Tensor, exif: tf.Tensor, profile: tf.Tensor, seen: tf.Tensor, sound: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        length, kind = read_number(data, place, 4, True), read_number(data, place + 4, 4, True)
        content = tf.stack([place + 8, length])
        before = seen[2, 0] < 0
        chosen = before & (kind == [_PLTE, _TRNS, _IDAT])
        # Programs differ in what they make of two of a kind, and of a palette behind its transparency.
        again = tf.reduce_any(chosen & (seen[:, 0] >= 0)) | (chosen[0] & (seen[1, 0] >= 0))
        is_profile = before & (kind == _ICCP) & (profile[0] < 0)
        return (
            tf.where(kind == _IEND, tf.size(data), place + 12 + length),
            tf.where((kind == _EXIF_CHUNK) & (exif[0] < 0), content, exif),
            tf.where(is_profile, content, profile),
            tf.where(chosen[:, None], content, seen),
            sound & ~again,
        )

    nowhere = tf.constant(_NOWHERE)
    start = tf.constant(len(PNG_START)), nowhere, nowhere, tf.constant([_NOWHERE] * 3), tf.constant(True)
    place, exif, profile, seen, sound = tf.while_loop(
        goes_on, read_chunk, start, maximum_iterations=_MOST_PARTS, parallel_iterations=1
    )
    palette, transparency = seen[0], seen[1]
    sides = tf.stack([read_number(data, 20, 4, True), read_number(data, 16, 4, True)])
    depth, colour = read_number(data, 24, 1, True), read_number(data, 25, 1, True)
    sound &= ~goes_on(place) & _fits(palette, transparency, depth, colour) & _is_whole(data, transparency)
    transparent = (transparency[0] >= 0) | (tf.bitwise.bitwise_and(colour, _ALPHA) > 0)
    deep = (colour == _GREY) & (depth == 16)
    kind = tf.where(transparent, tf.where(deep, DEEP_RGBA, RGBA), tf.where(deep, DEEP_GREY, RGB))
    # The profile's name ends with a zero; behind it stands how it is deflated.
    name = read_number(data, profile[0] + tf.range(80), 1, True)
    skipped = 2 + tf.argmax(name == 0, output_type=tf.int32)
    stream = profile + skipped * [1, -1]
    readable = tf.reduce_any(name == 0) & (stream[1] > 0) & (stream[1] <= _MOST_DEFLATED)
    found = tf.where(readable, _part(file, stream), UNREAD)
    there = (profile[0] >= 0) & (colour != _GREY)
    return tf.where(sound, kind, -1), sides, _orientation(data, exif), tf.where(there, found, b"")


def _fits(palette: tf.Tensor, transparency: tf.Tensor, depth: tf.Tensor, colour: tf.Tensor) -> tf.Tensor:
    """Returns whether these chunks, places and lengths, are as long as a PNG has them."""
    length = transparency[1]
    entries = tf.minimum(palette[1] // 3, tf.bitwise.left_shift(1, tf.minimum(depth, 8)))
    in_palette = (length > 0) & (length <= entries)
    fits = tf.where(colour == _PALETTE, in_palette, tf.where(colour == _GREY, length == 2, length == 6))
    return (palette[1] % 3 == 0) & ((transparency[0] < 0) | fits)


def _is_whole(data: tf.Tensor, transparency: tf.Tensor) -> tf.Tensor:
    """Returns whether the checksum behind the chunk at a place and of a length is that of its content.

    libpng takes a damaged palette for an error, and does without a damaged transparency.
    """
    begin, end = transparency[0], transparency[0] + tf.minimum(transparency[1], 256)

    def add(state: tf.Tensor, digit: tf.Tensor) -> tf.Tensor:
        index = tf.bitwise.bitwise_and(tf.bitwise.bitwise_xor(state, digit), 255)
        return tf.bitwise.bitwise_xor(tf.gather(_CRC, tf.cast(index, tf.int32)), tf.bitwise.right_shift(state, 8))

    def check() -> tf.Tensor:
        digits = tf.cast(data[begin - 4 : end], tf.uint32)
        found = tf.bitwise.invert(tf.foldl(add, digits, tf.constant(0xFFFFFFFF, tf.uint32)))
        return tf.bitcast(found, tf.int32) == read_number(data, end, 4, True)

    return tf.cond(begin >= 0, check, lambda: tf.constant(True))


def _orientation(data: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
    """Returns the orientation, 1 to 8, in the first directory of the TIFF structure at place and length `exif`."""
    # Some programs put before a PNG's what stands before a JPEG's.
    exif = tf.where(_begins(data, exif, EXIF_START), exif + _without(EXIF_START), exif)
    place, size = tf.unstack(tf.maximum(exif, 0))
    # What is behind its end reads as zeros.
    tiff = tf.concat([data[place : place + size], [0]], 0)
    order = read_number(tiff, 0, 4, True)
    big = order == int.from_bytes(b"MM\0*", "big")
    known = big | (order == int.from_bytes(b"II*\0", "big"))
    directory = read_number(tiff, 4, 4, big)
    directory = tf.where((directory >= 0) & (directory < size), directory, size)
    entries = directory + 2 + 12 * tf.range(read_number(tiff, directory, 2, big))
    entries = tf.boolean_mask(entries, entries + 12 <= size)
    found = tf.boolean_mask(entries, read_number(tiff, entries, 2, big) == _ORIENTATION_TAG)
    entry = tf.concat([found, [size]], 0)[0]
    kind, count = read_number(tiff, entry + 2, 2, big), read_number(tiff, entry + 4, 4, big)
    short, long = read_number(tiff, entry + 8, 2, big), read_number(tiff, entry + 8, 4, big)
    value = tf.where(kind == _SHORT, short, tf.where(kind == _LONG, long, 1))
    return tf.where(known & (count == 1) & (value >= 1) & (value <= 8), value, 1)


def _begins(data: tf.Tensor, part: tf.Tensor, start: bytes) -> tf.Tensor:
    """Returns whether the part of the data at place and length `part` begins with some bytes."""
    found = read_number(data, part[0] + tf.range(len(start)), 1, True)
    return (part[1] >= len(start)) & (part[0] + len(start) <= tf.size(data)) & tf.reduce_all(found == list(start))


def _without(start: bytes) -> list[int]:
    """Returns what place and length of a part change by without its first bytes."""
    return [len(start), -len(start)]


def _part(file: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    """Returns the bytes at place and length `part`; nothing if they are not in the file."""
    inside = (part[0] >= 0) & (part[1] >= 0) & (part[0] + part[1] <= tf.strings.length(file))
    place, length = tf.unstack(tf.where(inside, part, 0))
    return tf.strings.substr(file, place, length)
