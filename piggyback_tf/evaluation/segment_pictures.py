"""Label maps as pictures: index PNGs with a palette, and colours over the image."""

import base64
import io

import numpy as np
from PIL import Image

# Longest side of a picture on a page in pixels.
SIDE = 160
# How much of an overlay is the colour of the class.
_SHARE = 0.5


def palette() -> np.ndarray:
    """Returns the colours of PASCAL VOC, uint8 `[256, 3]`: bits of the class's number, its lowest ones first."""
    numbers, colours = np.arange(256), np.zeros([256, 3], np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (((numbers >> (3 * place + channel)) & 1) << (7 - place)).astype(np.uint8)
    return colours


def label_png(labels: np.ndarray) -> bytes:
    """Returns a label map as a PNG whose pixels are the numbers of the classes, shown in colours.

    Args:
        labels: uint8 `(height, width)`.
    """
    image = Image.fromarray(labels)
    image.putpalette(palette().reshape(-1).tolist())
    return _png(image)


def overlay_png(image: np.ndarray, labels: np.ndarray) -> bytes:
    """Returns an image as a PNG, with the colour of each pixel's class over it; class 0 is left as it is.

    Args:
        image: uint8 `(height, width, 3)`.
        labels: uint8 `(height, width)`.
    """
    return _png(Image.fromarray(overlay(image, labels)))


def overlay(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the pixels of `overlay_png`, uint8 `(height, width, 3)`."""
    colours = palette()[labels].astype(np.float32)
    mixed = np.where(labels[..., None] == 0, image, (1 - _SHARE) * image + _SHARE * colours)
    return np.round(mixed).astype(np.uint8)


def small_size(size: tuple[int, int]) -> tuple[int, int]:
    """Returns `(height, width)` of an image on a page."""
    part = min(1.0, SIDE / max(size))
    return max(1, round(part * size[0])), max(1, round(part * size[1]))


def small_map(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a label map with fewer pixels: each has the label at its middle.

    Args:
        labels: uint8 `(height, width)`.
        size: The new height and width.
    """
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, labels.shape, strict=True)
    )
    return labels[rows][:, columns]


def small_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image with fewer pixels, uint8.

    Args:
        image: uint8 `(height, width, 3)`.
        size: The new height and width.
    """
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size[::-1], Image.Resampling.LANCZOS))


def map_to_text(labels: np.ndarray) -> str:
    """Returns a label map as text, for JSON."""
    return base64.b64encode(_png(Image.fromarray(labels))).decode()


def map_of_text(text: str) -> np.ndarray:
    """Returns the label map of a text, uint8 `(height, width)`, no side of which is longer than `SIDE`.

    Raises:
        ValueError: If it is none.
    """
    try:
        image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"])
        if image.mode != "L" or max(image.size) > SIDE:
            raise ValueError(f"{image.mode} of {image.width}x{image.height}")
        return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"no label map: {error}") from error


def swatch_png(number: int) -> bytes:
    """Returns the colour of a class as a PNG."""
    return _png(Image.fromarray(np.broadcast_to(palette()[number], (12, 12, 3)).copy()))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
