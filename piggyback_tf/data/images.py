"""Images as a person sees them: any file that Pillow reads becomes uint8 RGB, upright and opaque."""

import io
import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageOps

EXTENSIONS = ("jpg", "jpeg", "png", "bmp", "gif", "webp", "tif", "tiff")


class DataError(ValueError):
    """Something is wrong with the data or with how they were asked for; the message says what."""


class BrokenImageError(DataError):
    """An image's bytes were read but do not hold a whole image."""


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
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"Image file {str(path)!r} cannot be read: {error.strerror or error}.") from error
    return decode_image(data, str(path))


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of an image file, of an animation the first frame.

    The EXIF orientation is applied, transparency is composited on white, 16-bit grey is scaled by
    its range of 0 to 65535, and grey, palette and CMYK images are converted to RGB.

    Args:
        data: The content of the file.
        name: What to call the image in an error message.

    Returns:
        A uint8 array of shape `(height, width, 3)`, RGB.

    Raises:
        BrokenImageError: If the bytes are not a whole image that can be shown in RGB.
    """
    if not data:
        raise BrokenImageError(f"Broken image {name!r}: the file is empty.")
    try:
        # Pillow's decoders raise half a dozen kinds of errors for damaged files (OSError, SyntaxError,
        # struct.error, ValueError, EOFError, ...), so that anything but a whole image counts as broken.
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
                # Pillow takes every CMYK JPEG for one of Adobe's, which are stored inverted.
                image = ImageChops.invert(image)
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except Exception as error:
        reason = "it is in no image format that Pillow knows" if "cannot identify" in str(error) else str(error)
        raise BrokenImageError(f"Broken image {name!r}: {reason.rstrip('.')}.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return _grey_16_bit(image).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _grey_16_bit(image: Image.Image) -> Image.Image:
    # Pillow's own conversion to 8 bits clips at 255, which leaves most 16-bit images white.
    values = np.asarray(image).astype(np.int64)
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise ValueError(f"its values run from {values.min()} to {values.max()}, and 16-bit grey ends at 65535")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))
