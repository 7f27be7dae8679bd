"""Boxes drawn over images."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from piggyback_tf.evaluation.segment_pictures import palette

# Boxes with a lower score are not drawn, told to people, or counted as wrong: nobody would believe them.
BELIEVED = 0.3


def boxes_png(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], labels: Sequence[str] = ()) -> bytes:
    """Returns `with_boxes` as a PNG."""
    stream = io.BytesIO()
    Image.fromarray(with_boxes(image, boxes, classes, labels)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def with_boxes(image: np.ndarray, boxes: np.ndarray, classes: Sequence[int], labels: Sequence[str] = ()) -> np.ndarray:
    """Returns an image with boxes in the colours of their classes, uint8 `(height, width, 3)`.

    Args:
        image: uint8 `(height, width, 3)`.
        boxes: ymin, xmin, ymax and xmax in pixels, `[n, 4]`.
        classes: The number of the class of each.
        labels: What is written at each; nothing if empty. What the font lacks is a question mark.
    """
    picture = Image.fromarray(np.ascontiguousarray(image))
    pencil, font = ImageDraw.Draw(picture), ImageFont.load_default()
    width = max(1, round(min(image.shape[:2]) / 200))
    # The first ones lie on top.
    for place in reversed(range(len(boxes))):
        colour = box_colour(classes[place])
        top, left, bottom, right = (float(edge) for edge in boxes[place])
        # The last pixel of a box is before its end.
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pencil.rectangle(corners, outline=colour, width=width)
        if labels:
            text = labels[place].encode("latin-1", "replace").decode("latin-1")
            field = pencil.textbbox((left, top), text, font=font)
            pencil.rectangle(field, fill=colour)
            pencil.text((left, top), text, fill=(0, 0, 0) if sum(colour) > 320 else (255, 255, 255), font=font)
    return np.asarray(picture)


def box_colour(number: int) -> tuple[int, int, int]:
    """Returns the colour of a class: as of label maps, whose first one is black, from the second on."""
    red, green, blue = (int(part) for part in palette()[1 + number % 255])
    return red, green, blue
