"""A small network as users bring one: scaling inside, and a functional model within the model."""

import keras


def nested_network(size: int = 32) -> keras.Model:
    """Returns a model from RGB images in [0, 255] to 16 features, whose middle part is a model of its own."""
    keras.utils.set_random_seed(3)
    layers = keras.layers
    maps = keras.Input((None, None, 12))
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(maps)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(12, 1, activation="relu")(x)
    inner = keras.Model(maps, layers.Add()([x, maps]), name="inner")
    images = keras.Input((size, size, 3), name="images")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = layers.Conv2D(12, 3, strides=2, padding="same", activation="relu", name="stem")(x)
    x = layers.Conv2D(16, 3, strides=2, activation="relu", name="last")(inner(x))
    return keras.Model(images, layers.GlobalAveragePooling2D()(x), name="own")
