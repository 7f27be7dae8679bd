"""Networks for images of another size, over the same variables."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone, model_hash, named_variables
from piggyback_tf.surgery import for_image_shape


def test_another_size_over_the_same_variables():
    model = load_backbone("shapesnet", image_size=32).model
    wide = for_image_shape(model, (40, 56))
    assert wide.input_shape == (None, 40, 56, 3) and wide.output_shape == model.output_shape
    assert for_image_shape(model, (32, 32)) is model
    assert for_image_shape(wide, (32, 32)).input_shape == model.input_shape
    first, second = named_variables(model), named_variables(wide)
    assert first.keys() == second.keys() and model_hash(model) == model_hash(wide)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    back = for_image_shape(wide, (32, 32))
    assert np.array_equal(back(images, training=False).numpy(), model(images, training=False).numpy())
    # What changes in one changes in the other.
    path, variable = next(iter(first.items()))
    variable.assign(variable + 1.0)
    assert np.array_equal(second[path].numpy(), variable.numpy())


def test_layers_with_weights_for_each_place_are_named():
    images = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(keras.layers.Conv2D(2, 3, name="conv")(images))
    model = keras.Model(images, keras.layers.Dense(4, name="fixed")(x), name="flat")
    with pytest.raises(
        ValueError, match=r"'flat' is built for images of 16x16 pixels and cannot take those of 20x24.*fixed"
    ):
        for_image_shape(model, (20, 24))
