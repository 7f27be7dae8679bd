"""Images as a person sees them: any file that Pillow reads becomes uint8 RGB, upright, opaque and in sRGB.

A copy of this module goes to devices as `piggyback_images.py`, beside what is in `export/edge/`. It needs NumPy and
Pillow alone, and Python 3.9.
"""

from __future__ import annotations

import functools
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageCms, UnidentifiedImageError

# Those of the formats in which people keep images; JPEG 2000 and Netpbm have several.
EXTENSIONS = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "bmp", "dib", "gif", "webp", "tif", "tiff", "avif", "avifs"),
    *("jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "ppm", "pgm", "pbm", "pnm"),
)
# Of what iPhones write.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
# A new number where the pixels of any file change: what was cached is made anew, and packs say with which they were
# trained. 2: colour profiles are converted, XMP turns no image, transparent grey of 16 bits, odd grey TIFFs.
PIXELS_VERSION = "2"
# Segments of a JPEG that tell nothing to a decoder: those of programs, but for APP0 and Adobe's APP14, and comments.
_METADATA = (*range(0xFFE1, 0xFFEE), 0xFFEF, 0xFFFE)
JPEG_START, PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
EXIF_START, PROFILE_START = b"Exif\0\0", b"ICC_PROFILE\0"
# Two profiles are the same if no colour differs by more, of 255.
PROFILE_TOLERANCE = 2
# A real colour profile has a few megabytes at most; what unpacks to more is none.
_MAX_PROFILE = 16 << 20
# The colours that are compared: all of so many levels of red, green and blue.
_LEVELS = 17
# An augmentation may come with a pack from a stranger: no step makes an image larger than this, 192 MiB.
MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE * MAX_SIDE
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DataError(ValueError):
    """Something is wrong with the data or with how they were asked for; the message says what.

    Attributes:
        kind: For an error of one image, what is wrong with it: `"heic"`, `"empty"`, `"no_image"`, `"damaged"`,
            `"extension"`, `"no_class"` and others, the keys of `KINDS` in `data/unusable_files.py`.
    """

    kind = "unreadable"


class BrokenImageError(DataError):
    """An image's bytes were read but do not hold a whole image."""

    def __init__(self, message: str, kind: str = "damaged"):
        super().__init__(message)
        self.kind = kind


class _UnknownRangeError(ValueError):
    """A whole image, of whose numbers nobody knows which is black and which is white; the message says why."""


class ImageParts(NamedTuple):
    """What of a file makes its pixels.

    Attributes:
        pixels: The file, without what does not change how its pixels are decoded.
        exif: Its EXIF data, a TIFF structure; None where Pillow is to say.
        profile: Its colour profile; None where Pillow is to say.
    """

    pixels: bytes
    exif: bytes | None = None
    profile: bytes | None = None


def has_image_extension(path: str | os.PathLike) -> bool:
    """Whether a file name ends like an image's, in small or capital letters."""
    return Path(path).suffix.lower().removeprefix(".") in EXTENSIONS


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file.

    Args:
        path: The file.

    Returns:
        A uint8 array of shape `(height, width, 3)`, RGB.

    Raises:
        BrokenImageError: If the file's content is not a whole image.
        DataError: If the file cannot be read at all.
    """
    return decode_image(read_file(path), str(path))


def read_file(path: str | os.PathLike) -> bytes:
    """Returns the content of an image file.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Image file {str(path)!r} cannot be read: {error.strerror or error}.") from error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of an image file, of an animation the first frame.

    The EXIF orientation is applied, colours are converted from the file's colour profile to sRGB, transparency is
    composited on white, 16-bit grey is scaled by its range of 0 to 65535, and grey, palette and CMYK images are
    converted to RGB. Of colour profiles those for RGB count; an image whose profile is sRGB to within
    `PROFILE_TOLERANCE` keeps its pixels, as one does whose profile cannot be read. The orientation of a JPEG is that of
    its first Exif segment, that of a PNG stands in its chunk eXIf; what XMP or texts say of it does not count.

    Args:
        data: The content of the file.
        name: What to call the image in an error message.

    Returns:
        A uint8 array of shape `(height, width, 3)`, RGB.

    Raises:
        BrokenImageError: If the bytes are not a whole image that can be shown in RGB.
    """
    if not data:
        raise unidentified(name, data)
    try:
        # Pillow's decoders raise half a dozen kinds of errors for damaged files (OSError, SyntaxError,
        # struct.error, ValueError, EOFError, ...), so that anything but a whole image counts as broken.
        parts = image_parts(data)
        with Image.open(io.BytesIO(parts.pixels)) as image:
            image.load()
            exif = image.info.get("exif", b"") if parts.exif is None else parts.exif
            profile = image.info.get("icc_profile", b"") if parts.profile is None else parts.profile
            # Pillow has turned a TIFF while loading it.
            turn = None if image.format == "TIFF" else turn_of(exif)
            image = _to_rgb(image, parts.pixels, profile or b"")
            return np.array(image if turn is None else image.transpose(turn))
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise unidentified(name, data[:12]) from error
    except _UnknownRangeError as error:
        raise BrokenImageError(f"Image {name!r} cannot be used: {error}.", "no_range") from error
    except Exception as error:
        raise BrokenImageError(f"Broken image {name!r}: {str(error).rstrip('.')}.") from error


def unidentified(name: str, start: bytes) -> BrokenImageError:
    """Returns the error of a file that Pillow takes for no image, by its first bytes."""
    if not start:
        return BrokenImageError(f"Broken image {name!r}: the file is empty.", "empty")
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        return BrokenImageError(f"Broken image {name!r}: it is a photo in HEIC; convert it to JPEG.", "heic")
    return BrokenImageError(f"Broken image {name!r}: it is in no image format that Pillow knows.", "no_image")


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns an image, uint8 `(h, w, 3)`, resized with antialiased bilinear interpolation."""
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resized_size(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Returns the height and width of an image whose shorter side gets a length, the aspect being kept."""
    found = [max(round(side * shorter / min(height, width)), shorter) for side in (height, width)]
    return found[0], found[1]


def central_crop(image: np.ndarray, size: int) -> np.ndarray:
    """Returns a square out of the middle of an image that is large enough."""
    top, left = central_offset(image.shape[:2], size)
    return image[top : top + size, left : left + size]


def central_offset(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Returns where a square begins that is cut out of the middle of an image of a height and width."""
    return (shape[0] - size) // 2, (shape[1] - size) // 2


def image_parts(data: bytes) -> ImageParts:
    """Returns what of a file makes its pixels."""
    if data.startswith(JPEG_START):
        return _jpeg_parts(data)
    return _png_parts(data) if data.startswith(PNG_START) else ImageParts(data)


def _jpeg_parts(data: bytes) -> ImageParts:
    """Keeps the segments that make the pixels, and reads those of EXIF and colour.

    Those before the first scan are looked at, and an export to a SavedModel looks at them in the same way.
    """
    kept, exif, profiles, place = [data[:2]], None, [], 2
    while place + 4 < len(data):
        marker, length = _big(data[place : place + 2]), _big(data[place + 2 : place + 4])
        # A scan, or what has no length.
        if 0xFF00 < marker < 0xFFC0 or 0xFFD0 <= marker <= 0xFFDA:
            break
        # Any number of bytes FF may stand before a marker, and decoders skip what is none.
        if marker <= 0xFF00 or marker == 0xFFFF:
            place += 2 if marker == 0xFF00 else 1
            continue
        end = place + 2 + max(length, 2)
        content = data[place + 4 : end]
        if marker == 0xFFE1 and exif is None and content.startswith(EXIF_START):
            exif = content[len(EXIF_START) :]
        if marker == 0xFFE2 and content.startswith(PROFILE_START):
            profiles.append(content[len(PROFILE_START) :])
        # Pillow breaks off at one that is cut, and libjpeg takes no notice of it.
        cut_adobe = marker == 0xFFEE and not (len(content) >= 12 and content.startswith(b"Adobe"))
        if marker not in _METADATA and not cut_adobe:
            kept.append(data[place:end])
        place = end
    # Each part begins with its number and how many there are.
    profiles.sort(key=lambda part: part[:1])
    numbers = [tuple(part[:2]) for part in profiles]
    whole = numbers == [(number, len(profiles)) for number in range(1, len(profiles) + 1)]
    pixels = b"".join([*kept, data[place:]])
    return ImageParts(pixels, exif or b"", b"".join(part[2:] for part in profiles) if whole else b"")


def _png_parts(data: bytes) -> ImageParts:
    """Keeps the chunks that make the pixels, and reads those of EXIF and colour.

    Pillow takes a whole image for broken if a text or a profile of it is long. Of a transparent colour the bits count
    that a pixel has, as in libpng.
    """
    depth, colour = data[24:26].ljust(2, b"\0")
    kept, exif, profile, before = [PNG_START], None, None, True
    for kind, content, chunk in _chunks(data):
        before &= kind != b"IDAT"
        if kind == b"tRNS" and before:
            kept.append(_chunk(kind, _transparent_colour(content, depth)) if colour in (0, 2) else chunk)
        elif kind[:1].isupper():
            kept.append(chunk)
        elif kind == b"eXIf" and exif is None:
            exif = content
        elif kind == b"iCCP" and before and profile is None:
            profile = _inflate(content.partition(b"\0")[2][1:])
    return ImageParts(b"".join(kept), exif or b"", profile or b"")


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yields kind, content and all bytes of each chunk of a PNG."""
    place = len(PNG_START)
    while place < len(data):
        end = place + 12 + _big(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if end > len(data):
            # Pillow says what is wrong with it.
            yield b"IDAT", b"", data[place:]
            return
        yield kind, data[place + 8 : end - 4], data[place:end]
        if kind == b"IEND":
            return
        place = end


def _big(digits: bytes) -> int:
    return int.from_bytes(digits, "big")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _transparent_colour(content: bytes, depth: int) -> bytes:
    """Returns tRNS of a PNG as the values that Pillow compares with: below 8 bits they are scaled to a byte."""
    largest = (1 << depth) - 1
    # Pillow scales those of one bit by itself.
    scale = 255 // largest if depth in (2, 4) else 1
    values = (_big(content[place : place + 2]) & largest for place in range(0, len(content), 2))
    return b"".join((value * scale).to_bytes(2, "big") for value in values)


def _inflate(content: bytes) -> bytes:
    """Returns a colour profile; nothing if it is damaged or too long."""
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(content, _MAX_PROFILE)
    except zlib.error:
        return b""
    return found if inflater.eof else b""


def turn_of(exif: bytes) -> Image.Transpose | None:
    """Returns how an image with these EXIF data is turned upright; None if it is already."""
    return _TURNS.get(_orientation(exif.removeprefix(EXIF_START)))


def _orientation(exif: bytes) -> int:
    """Returns the orientation in the first directory of a TIFF structure, 1 to 8; 1 if there is none.

    It is an integer of 16 or 32 bits; of a directory that is cut off the whole entries count. An export to a SavedModel
    reads it in the same way.
    """
    orders: dict[bytes, Literal["little", "big"]] = {b"II*\0": "little", b"MM\0*": "big"}
    order = orders.get(exif[:4])
    if order is None:
        return 1
    start = int.from_bytes(exif[4:8], order)
    for place in range(start + 2, start + 2 + 12 * int.from_bytes(exif[start : start + 2], order), 12):
        entry = exif[place : place + 12]
        if len(entry) < 12:
            break
        if int.from_bytes(entry[:2], order) == _ORIENTATION_TAG:
            size = {3: 2, 4: 4}.get(int.from_bytes(entry[2:4], order), 0)
            value = int.from_bytes(entry[8 : 8 + size], order)
            return value if int.from_bytes(entry[4:8], order) == 1 and 1 <= value <= 8 else 1
    return 1


def _to_rgb(image: Image.Image, data: bytes, profile: bytes) -> Image.Image:
    if image.format == "TIFF":
        _check_tiff(image)
    if image.mode.startswith("I"):
        return _deep_grey(image).convert("RGB")
    if image.mode == "F":
        raise _UnknownRangeError("its pixels are floating-point numbers, whose range is not known")
    if image.mode == "CMYK" and data.startswith(JPEG_START) and "adobe" not in image.info:
        # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted.
        image = ImageChops.invert(image)
    if image.mode == "RGB" and data.startswith(PNG_START) and data[24] == 16 and "transparency" in image.info:
        image = _with_deep_transparency(image, data)
    transparent = image.has_transparency_data
    found = image.convert("RGBA" if transparent else "RGB")
    if image.mode in ("RGB", "RGBA", "RGBa", "P", "PA"):
        found = _in_srgb(found, profile)
    if transparent:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        found = Image.alpha_composite(white, found).convert("RGB")
    return found


def _check_tiff(image: Image.Image) -> None:
    """Refuses grey whose range is not known."""
    if 2 in np.atleast_1d(image.tag_v2.get(339, 1)):
        raise _UnknownRangeError("its pixels are signed integers, whose range is not known")
    if image.mode == "I":
        raise _UnknownRangeError("its pixels are integers of 32 bits, whose range is not known")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Returns grey of 16 bits scaled to 8 bits; Pillow's own conversion clips at 255, so that most of it is white."""
    values = np.asarray(image).astype(np.int64)
    white, inverted = 65535, False
    if image.format == "TIFF":
        white = (1 << int(image.tag_v2[258][0])) - 1
        inverted = image.tag_v2.get(262) == 0
    if values.min(initial=0) < 0 or values.max(initial=0) > white:
        raise ValueError(f"its values run from {values.min()} to {values.max()}, and its grey ends at {white}")
    if (hidden := image.info.get("transparency")) is not None:
        values[values == hidden] = white
    grey = (2 * 255 * values + white) // (2 * white)
    return Image.fromarray((255 - grey if inverted else grey).astype(np.uint8))


def _with_deep_transparency(image: Image.Image, data: bytes) -> Image.Image:
    """Returns RGBA of a PNG that names a colour of three 16-bit values as transparent.

    Pillow keeps the upper bytes of the pixels, and compares them with the lower bytes of the colour.
    """
    with Image.open(io.BytesIO(data)) as lower:
        # Pillow's name for the lower bytes, were they written with the lower byte first.
        lower.tile = [lower.tile[0]._replace(args="RGB;16L")]
        pixels = np.asarray(image).astype(np.int32) << 8 | np.asarray(lower)
    hidden = (pixels == image.info["transparency"]).all(axis=2)
    return Image.fromarray(np.dstack([np.asarray(image), np.where(hidden, 0, 255).astype(np.uint8)]))


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Returns RGB or RGBA with the colours of a profile converted to sRGB."""
    transform = colour_conversion(profile, image.mode) if profile else None
    return image if transform is None else ImageCms.applyTransform(image, transform)


# A folder of photos has few profiles, and each takes a millisecond to read and compare.
@functools.lru_cache(maxsize=16)
def colour_conversion(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of a profile to sRGB; None if it is not for RGB, cannot be read, or is sRGB."""
    if profile[16:20] != b"RGB ":
        return None
    try:
        # Without a memory of the last pixel, several threads may use one.
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            mode,
            ImageCms.Intent.PERCEPTUAL,
            ImageCms.Flags.NOCACHE,
        )
    except (OSError, ImageCms.PyCMSError):
        return None
    levels = np.linspace(0, 255, _LEVELS).astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    found = np.asarray(ImageCms.applyTransform(Image.fromarray(colours).convert(mode), transform))[..., :3]
    same = np.abs(found.astype(int) - colours).max() <= PROFILE_TOLERANCE
    return None if same else transform
