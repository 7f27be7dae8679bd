"""Files that leave the project alone have copies of what the package has; both do the same with the same input.

That of what is junk is in `tests/test_junk.py`.
"""

import random

import numpy as np
import pytest

from export.deployment import client
from export.edge import piggyback_edge
from piggyback_tf import foreign_text
from piggyback_tf.data import pixel_range
from piggyback_tf.packs import materialise

# Letters, escapes of terminals, ends of lines of all kinds, what turns the direction of writing, halves of pairs.
SIGNS = "ab '\"\\é⛵\t\n\r\x0b\x1b\x07\x7f\x85\x9b\xa0\u200b\u202e\u2028\u2029\udc80\udfff\U0001f600\U000e0001"


def _texts(count):
    chosen = random.Random(0)
    return ["", *("".join(chosen.choices(SIGNS, k=chosen.randint(1, 8))) for _ in range(count))]


def test_what_a_file_of_a_task_says_is_printed_by_a_device_as_here():
    texts = _texts(2000)
    assert [piggyback_edge._printable(text) for text in texts] == [foreign_text.printable(text) for text in texts]


def test_what_a_server_says_is_printed_by_a_client_as_here():
    texts = _texts(2000)
    expected = [foreign_text.escaped(" ".join(text.splitlines())) for text in texts]
    assert [client._printable(text) for text in texts] == expected


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_a_device_looks_up_the_bytes_of_a_mask_in_the_same_tables(width):
    dtype = np.dtype(f"int{width}")
    for ours, theirs in zip(materialise._tables(dtype), piggyback_edge._tables(dtype), strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("planes", [1, 2])
def test_a_device_applies_a_mask_as_a_bank_does(dtype, planes):
    random_ = np.random.default_rng(planes)
    for size in (1, 7, 8, 9, 64, 1001):
        weights = random_.standard_normal(size).astype(dtype)
        weights[random_.random(size) < 0.1] = random_.choice([np.nan, np.inf, -np.inf, -0.0])
        kept = random_.integers(0, 2, size, dtype=np.uint8)
        mask = np.stack([np.packbits(kept & plane, bitorder="little") for plane in (1, random_.integers(0, 2, size))])
        mask = mask[:planes]
        ours = np.zeros(8 * mask.shape[1], f"int{8 * weights.itemsize}")
        materialise.apply_mask(weights, mask, ours)
        theirs = np.empty_like(weights)
        piggyback_edge._apply_mask(weights, mask, theirs)
        np.testing.assert_array_equal(ours[:size], theirs.view(ours.dtype))


def _images(count):
    """Yields images of all kinds of numbers, within and beyond what an image holds."""
    chosen = np.random.default_rng(0)
    ends = [-128, -1, -1e-3, 0, 1e-3, 0.5, 1, 1.001, 2, 254.9, 255, 255.1, 256, 65535, np.nan, np.inf, -np.inf]
    kinds = ["uint8", "int8", "uint16", "int16", "int64", "float16", "float32", "float64", "bool", "complex64"]
    for _ in range(count):
        low, high = chosen.choice(ends, 2)
        side = chosen.choice([0, 1, 4])
        image = chosen.uniform(0, 1, (side, 4, 3)) * chosen.choice([0, 1, 200])
        image.flat[:1], image.flat[-1:] = low, high
        with np.errstate(all="ignore"):
            yield image.astype(chosen.choice(kinds))


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_a_device_refuses_the_images_that_a_bank_refuses():
    def refuses(check, image):
        try:
            check(image)
        except (ValueError, piggyback_edge.EdgeError):
            return True
        return False

    answers = [tuple(refuses(check.check_pixels, i) for check in (pixel_range, piggyback_edge)) for i in _images(3000)]
    assert set(answers) == {(False, False), (True, True)}
