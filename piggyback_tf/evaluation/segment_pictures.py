"""Label maps as pictures: index PNGs with a palette, and colours over the image."""

import io

import numpy as np
from PIL import Image

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
    colours = palette()[labels].astype(np.float32)
    mixed = np.where(labels[..., None] == 0, image, (1 - _SHARE) * image + _SHARE * colours)
    return _png(Image.fromarray(np.round(mixed).astype(np.uint8)))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return stream.getvalue()
