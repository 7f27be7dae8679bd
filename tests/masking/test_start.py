"""Real-valued masks that start from masks."""

import keras
import numpy as np
import pytest

from piggyback_tf.masking import MaskConfig, mask, read_masks, start_masks
from piggyback_tf.masking.start import start_value


@pytest.mark.parametrize("scale", [1e-2, 6e-3, 1e-1])
def test_ones_and_zeros_are_as_far_from_the_threshold(scale):
    value = start_value(np.array([1, 0, 0, 1], np.int8), MaskConfig(scale=scale))
    np.testing.assert_allclose(np.abs(value - 5e-3), scale - 5e-3, rtol=1e-5)
    np.testing.assert_array_equal(value >= 5e-3, [True, False, False, True])


@pytest.mark.parametrize("scale", [1e-2, 1e-1])
def test_ternary_zeros_are_as_far_from_both_signs(scale):
    value = start_value(np.array([1, 0, -1], np.int8), MaskConfig(kind="ternary", scale=scale))
    np.testing.assert_array_equal(value, np.array([scale, 0, -scale], np.float32))


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_a_network_has_the_masks_it_starts_from_and_others_start_as_usual(kind, caplog):
    inputs = keras.Input((6, 6, 3))
    x = keras.layers.SeparableConv2D(5, 3, name="one")(inputs)
    model = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="two")(x))
    masked = mask(model, MaskConfig(kind=kind))
    random = np.random.default_rng(0)
    low = -1 if kind == "ternary" else 0
    given = {
        path: random.integers(low, 2, value.shape, dtype=np.int8)
        for path, value in read_masks(masked).items()
        if path != "two/kernel"
    }
    # A mask of ones has nothing to lose.
    elsewhere = {"elsewhere/kernel": np.zeros(3, np.int8), "nowhere/kernel": np.ones(3, np.int8)}
    with caplog.at_level("WARNING", "absl"):
        start_masks(masked, {**given, **elsewhere})
    assert caplog.messages == ["Not masked here, and so not as in the pack that masks start from: elsewhere/kernel."]
    found = read_masks(masked)
    assert len(given) == 2
    assert all(np.array_equal(found[path], given[path]) for path in given)
    assert (found["two/kernel"] == 1).all()
    np.testing.assert_array_equal(masked.get_layer("two").mask_variables["kernel"], np.full((3, 3, 5, 4), 1e-2, "f4"))


def test_what_cannot_be_expressed_is_refused():
    with pytest.raises(ValueError, match="scale above the threshold.*scale=0.005, threshold=0.005"):
        start_value(np.array([1, 0]), MaskConfig(scale=5e-3))
    # Above the threshold, and not when rounded to the numbers of a mask.
    with pytest.raises(ValueError, match="scale above the threshold"):
        start_value(np.array([1, 0]), MaskConfig(scale=5e-3 + 1e-12))
    with pytest.raises(ValueError, match="kind='ternary'"):
        start_value(np.array([1, -1]), MaskConfig())
