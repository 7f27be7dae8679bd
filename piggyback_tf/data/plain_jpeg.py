"""JPEGs of which a decoder makes the pixels by itself, so that TensorFlow decodes them to those of `decode_image`."""

import re
from typing import NamedTuple

from PIL import Image

from piggyback_tf.data.images import JPEG_START, colour_conversion, image_parts, turn_of

# Frames that are coded one block after another by Huffman's code. Of a progressive one that lacks a scan decoders guess
# details, each in its own way.
_FRAMES = (0xFFC0, 0xFFC1)
# Beside them: tables of the code and of quantisation, and Adobe's segment, which is kept only if it is whole.
_TABLES, _RESTARTS, _JFIF, _SCAN = (0xFFC4, 0xFFDB, 0xFFEE), 0xFFDD, 0xFFE0, 0xFFDA
# Pillow breaks off at one of JFIF that is cut.
_JFIF_LENGTH = 14
# How luminance is sampled beside chrominance, (across, down) in four bits each: others are rare, and not compared.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22)
_END = b"\xff\xd9"
# A marker within a scan, without and with those of restarts.
_MARKER, _OTHER_MARKER = re.compile(rb"\xff[^\x00]", re.DOTALL), re.compile(rb"\xff[^\x00\xd0-\xd7]", re.DOTALL)


class PlainJpeg(NamedTuple):
    """A JPEG without what does not change how its pixels are decoded.

    Attributes:
        content: The file.
        size: Its `(height, width)`.
    """

    content: bytes
    size: tuple[int, int]


class _Frame(NamedTuple):
    """What a file says of its pixels before it has them: height, width and channels."""

    size: tuple[int, int]
    channels: int


def find_plain_jpeg(data: bytes) -> PlainJpeg | None:
    """Returns a JPEG that libjpeg alone decodes to the pixels of `decode_image`; None of any other file.

    Other files are those that are turned, have another colour profile than sRGB, are CMYK or progressive, are of
    another kind than usual, or do not end where their only scan does, as one that is cut off.

    Args:
        data: The content of a file.
    """
    if not (data.startswith(JPEG_START) and data.endswith(_END)):
        return None
    parts = image_parts(data)
    if turn_of(parts.exif or b"") is not None:
        return None
    frame = _only_frame(parts.pixels)
    # Of grey a profile does not count.
    profile = parts.profile if frame is not None and frame.channels == 3 else b""
    if frame is None or (profile and colour_conversion(profile, "RGB") is not None):
        return None
    return PlainJpeg(parts.pixels, frame.size)


def _only_frame(data: bytes) -> _Frame | None:
    """Returns the frame of a JPEG with usual segments before one scan of all channels, which is whole; else None."""
    frame, marker_in_scan, place = None, _MARKER, 2
    while place + 4 <= len(data):
        marker, length = (_big(data[start : start + 2]) for start in (place, place + 2))
        end = place + 2 + length
        if marker == _SCAN:
            channels = frame.channels if frame is not None else 0
            found = marker_in_scan.search(data, end)
            whole = found is not None and found.start() == len(data) - 2
            return frame if whole and length == 6 + 2 * channels and data[place + 4] == channels else None
        if marker in _FRAMES:
            if frame is not None or (frame := _frame(data[place + 4 : end])) is None:
                return None
        elif marker == _RESTARTS:
            marker_in_scan = _OTHER_MARKER
        elif marker not in _TABLES and not (marker == _JFIF and length >= 2 + _JFIF_LENGTH):
            return None
        place = end
    return None


def _frame(content: bytes) -> _Frame | None:
    """Returns the frame of 8 bits, grey or of three channels, that a segment describes; else None."""
    if len(content) not in (9, 15) or content[0] != 8 or len(content) != 6 + 3 * content[5]:
        return None
    height, width, channels = _big(content[1:3]), _big(content[3:5]), content[5]
    samplings = content[7::3]
    usual = channels == 1 or (samplings[0] in _SAMPLINGS and samplings[1:] == b"\x11\x11")
    # Of images beyond the limit Pillow says something.
    few = Image.MAX_IMAGE_PIXELS is None or height * width <= Image.MAX_IMAGE_PIXELS
    return _Frame((height, width), channels) if usual and few and height and width else None


def _big(digits: bytes) -> int:
    return int.from_bytes(digits, "big")
