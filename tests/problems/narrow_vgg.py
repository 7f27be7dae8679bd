"""VGG-16 with few channels, with fully connected layers behind a feature map of 3x3."""

import keras

from piggyback_tf.backbones import Backbone


def narrow_vgg(image_size: int = 96) -> Backbone:
    """Returns the layers of VGG-16 under their names, with random weights, from images to features `[B, 10]`."""
    layers, images = keras.layers, keras.Input((image_size, image_size, 3), name="images")
    x = layers.Rescaling(1 / 127.5, -1.0, name="scaled")(images)
    for block, (convolutions, channels) in enumerate(((2, 4), (2, 4), (3, 6), (3, 8), (3, 8)), start=1):
        for number in range(1, convolutions + 1):
            # Of sizes that neither vanish nor explode, and with biases that a border of zeros would show.
            x = layers.Conv2D(
                channels,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=10 * block + number),
                bias_initializer=keras.initializers.RandomNormal(stddev=0.1, seed=block),
                name=f"block{block}_conv{number}",
            )(x)
        x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
    x = layers.Flatten(name="flatten")(x)
    for name, units in (("fc1", 12), ("fc2", 10)):
        x = layers.Dense(
            units, activation="relu", kernel_initializer=keras.initializers.HeNormal(seed=units), name=name
        )(x)
        x = layers.Dropout(0.5, name=f"{name}_dropout")(x)
    return Backbone.from_model(keras.Model(images, x, name="narrow_vgg"), image_size=image_size)
