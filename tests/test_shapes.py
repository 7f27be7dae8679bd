"""Docstrings say which shapes and dtypes functions take and return; tests run with these compared in each call."""

import importlib

import numpy as np
import pytest

from piggyback_tf.evaluation.task_agnostic import normalised_entropy
from tests.shapes import CHECKED, ShapeError, checked, promised


def _scaled(images, means, other=None, size=None):
    """Returns images with other means.

    Args:
        images: uint8 `[N, S, S, 3]`.
        size: `(height, width)` of the result.
        means: `[N, 3]`, or a number.
        other: `[N]` or `[N, 2]`.

    Returns:
        float32 `[N, S, S, 3]`.
    """
    return images.astype(np.float32 if other is None else other)


IMAGES, MEANS = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 3))


def test_what_fits_is_let_through():
    assert promised(_scaled)["images"] == ("uint8", ("N", "S", "S", "3"))
    assert promised(_scaled).keys() == {"images", "means", "return"}
    assert checked(_scaled)(IMAGES, means=MEANS).dtype == np.float32
    assert checked(_scaled)(IMAGES, 1.0).shape == IMAGES.shape


@pytest.mark.parametrize(
    ("images", "means", "other", "name"),
    [
        (IMAGES[0], MEANS, None, "images"),
        (IMAGES[:, :3], MEANS, None, "images"),
        (IMAGES[..., :2], MEANS, None, "images"),
        (IMAGES.astype(np.int32), MEANS, None, "images"),
        (IMAGES, MEANS[:1], None, "images|means"),
        (IMAGES, MEANS, np.float64, "return"),
    ],
)
def test_what_does_not_fit_fails(images, means, other, name):
    with pytest.raises(ShapeError, match=f"^_scaled, ({name}): "):
        checked(_scaled)(images, means, other)


@pytest.mark.parametrize("place", CHECKED)
def test_each_function_of_the_list_promises_a_shape(place):
    module, _, path = place.partition(":")
    function = importlib.import_module(module)
    for name in path.split("."):
        function = getattr(function, name)
    assert promised(function)


def test_functions_are_checked_while_tests_run():
    with pytest.raises(ShapeError, match="normalised_entropy, logits"):
        normalised_entropy(np.zeros((2, 3, 4)))
