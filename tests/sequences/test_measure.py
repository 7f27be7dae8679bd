"""What a network costs, counted against numbers by hand."""

import keras
import pytest
import tensorflow as tf

from piggyback_tf.sequences.measure import multiply_adds

CONV, DEPTHWISE = keras.layers.Conv2D, keras.layers.DepthwiseConv2D


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: CONV(16, 3, padding="same", use_bias=False), 64 * 9 * 16 * 16),
        # Keras runs these in a function of its own.
        (lambda: CONV(16, 3, padding="same", use_bias=False, groups=4), 64 * 9 * 16 * 16 // 4),
        (lambda: CONV(16, 3, padding="same", use_bias=False, groups=16), 64 * 9 * 16),
        (lambda: DEPTHWISE(3, padding="same", use_bias=False), 64 * 9 * 16),
    ],
)
def test_a_convolution_costs_its_kernel_at_every_place(layer, expected):
    images = keras.Input((8, 8, 16))
    assert multiply_adds(keras.Model(images, layer()(images))) == expected
    assert not tf.config.functions_run_eagerly()
