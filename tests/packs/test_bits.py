"""Masks to bits and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from piggyback_tf.packs import bits

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)


@given(kind=st.sampled_from(sorted(bits.MASK_VALUES)), data=st.data())
def test_round_trip(kind, data):
    mask = data.draw(hnp.arrays(np.int8, SHAPES, elements=st.sampled_from(bits.MASK_VALUES[kind])))
    packed = bits.pack_bits(mask, kind)
    assert packed.dtype == np.uint8
    assert packed.shape == bits.packed_shape(mask.shape, kind)
    decoded = bits.unpack_bits(packed, mask.shape, kind)
    assert decoded.dtype == np.int8
    np.testing.assert_array_equal(decoded, mask)
    assert bits.count_zeros(packed, mask.shape) == (mask == 0).sum()


def test_the_layout_is_fixed():
    # Files outlive this code: bit i of byte j is weight 8 j + i in C order.
    mask = np.array([[1, 0, 0, 0, 0], [0, 0, 1, 0, 1]])
    assert bits.pack_bits(mask, "binary").tolist() == [[0b10000001, 0b10]]
    assert bits.pack_bits(-mask, "ternary").tolist() == [[0b10000001, 0b10], [0b10000001, 0b10]]


def test_binary_masks_take_one_bit_a_weight():
    assert bits.pack_bits(np.ones((3, 3, 64, 64), np.int8), "binary").nbytes == 3 * 3 * 64 * 64 // 8


@pytest.mark.parametrize(("kind", "value"), [("binary", -1), ("binary", 0.5), ("ternary", 2), ("ternary", np.nan)])
def test_other_values_are_refused(kind, value):
    with pytest.raises(ValueError, match="holds the values"):
        bits.pack_bits(np.array([1, value]), kind)


@pytest.mark.parametrize(
    ("packed", "kind", "message"),
    [
        ([[1, 0]], "binary", r"uint8 \[1, 1\] when packed"),
        ([[1]], "ternary", r"uint8 \[2, 1\] when packed"),
        ([[0b1000000]], "binary", "behind the last weight"),
        ([[1], [0b1000000]], "ternary", "behind the last weight"),
        ([[0b01], [0b10]], "ternary", "negated and as dropped"),
    ],
)
def test_bits_that_no_mask_has_are_refused(packed, kind, message):
    with pytest.raises(ValueError, match=message):
        bits.unpack_bits(np.array(packed, np.uint8), (2, 3), kind)
