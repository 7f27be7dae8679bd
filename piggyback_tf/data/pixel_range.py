"""Checks that arrays hold pixels as a network takes them: numbers in [0, 255], and not scaled to [0, 1]."""

from typing import Any

import numpy as np


def as_images(images: Any, shape: tuple[int, int]) -> np.ndarray:
    """Returns images as an array `[N, H, W, 3]`, after all checks.

    Args:
        images: The images.
        shape: The `(height, width)` that they must have.

    Raises:
        ValueError: If they are of another shape, or `check_pixels` refuses what they hold.
    """
    wanted = f"[N, {shape[0]}, {shape[1]}, 3]"
    try:
        images = np.asarray(images)
    except (TypeError, ValueError) as error:
        # Lists of images of several sizes, for instance.
        raise ValueError(f"Images must be an array {wanted}, which these cannot become.") from error
    if images.ndim != 4 or images.shape[1:] != (*shape, 3):
        raise ValueError(f"Images must be an array {wanted}. Received: shape {list(images.shape)}.")
    check_pixels(images)
    return images


def check_pixels(images: np.ndarray) -> None:
    """Checks that images hold what a network takes: numbers in [0, 255].

    Args:
        images: An image `[H, W, 3]`, or several `[B, H, W, 3]`. One of floating point numbers that end at 1 counts as
            scaled to [0, 1]; images that are so dark are handed over as integers.

    Raises:
        ValueError: If not.
    """
    if not (np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)):
        raise ValueError(f"Images must hold integers or floating point numbers. Received: {images.dtype}.")
    if images.dtype == np.uint8 or not images.size:
        return
    low, high = images.min(), images.max()
    if not (low >= 0 and high <= 255):  # NaN compares as false.
        raise ValueError(f"Images must hold values in [0, 255]. Received: {low} to {high}.")
    if images.dtype.kind != "f":
        return
    highest = images.reshape(len(images) if images.ndim == 4 else 1, -1).max(axis=1)
    scaled = np.flatnonzero((highest > 0) & (highest <= 1))
    if scaled.size:
        which = f"image {scaled[0]} of these" if len(highest) > 1 else "these"
        raise ValueError(
            f"Images must hold values in [0, 255], and {which}, of type {images.dtype}, end at {highest[scaled[0]]} as "
            "if they were scaled to [0, 1]; multiply them by 255, or pass images that are so dark as uint8."
        )
