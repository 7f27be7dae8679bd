"""A network on which masks die if too much of them flips at once, and images to learn on it."""

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import TaskData
from tests.methods.toy import PatternSource

CLASSES, EACH, HELD_OUT, SIZE = 100, 8, 2, 32


class Images(PatternSource):
    image_size = (SIZE, SIZE)

    def __init__(self, images, labels):
        self._images, self._labels, self._seed = images, labels, 0


def make_images(classes, each, seed):
    """Returns a pattern of 8 by 8 random colours for each class, shifted by up to a pixel, with noise; and labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each).astype(np.int32)
    pixels = random.uniform(0, 255, (classes, 8, 8, 3))[labels].repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    pixels = np.stack([np.roll(image, random.integers(-1, 2, 2), (0, 1)) for image in pixels])
    return np.clip(pixels + random.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8), labels


def make_network():
    """Returns 16 depthwise-separable blocks with random weights, and batch norm measured on other images."""
    layers, seeds = keras.layers, iter(range(1, 1000))

    def norm(x):
        return layers.BatchNormalization(momentum=0.0)(x)

    def block(x, layer, *arguments, **settings):
        kernel = "depthwise_initializer" if layer is layers.DepthwiseConv2D else "kernel_initializer"
        initializer = keras.initializers.HeNormal(seed=next(seeds))
        x = layer(*arguments, padding="same", use_bias=False, **{kernel: initializer}, **settings)(x)
        return layers.ReLU(6.0)(norm(x))

    images = keras.Input((SIZE, SIZE, 3))
    x = block(layers.Rescaling(1 / 127.5, -1.0)(images), layers.Conv2D, 32, 3, strides=2)
    for place, width in enumerate([48, *[72] * 15]):
        x = block(x, layers.DepthwiseConv2D, 3, strides=2 if place < 2 else 1)
        x = block(x, layers.Conv2D, width, 1)
    x = layers.GlobalAveragePooling2D()(block(x, layers.Conv2D, 384, 1))
    # What tells the images apart is small beside the means of the features, which this norm takes away.
    model = keras.Model(images, norm(x), name="deep")
    model(make_images(10, 40, 99)[0].astype("float32"), training=True)  # With momentum 0 one batch sets all statistics.
    return model


def make_problem() -> tuple[Backbone, TaskData]:
    """Returns the network, and a hundred classes of eight training images each, with two more for validation."""
    images, labels = make_images(CLASSES, EACH + HELD_OUT, 0)
    train = np.tile(np.arange(EACH + HELD_OUT) < EACH, CLASSES)
    names = tuple(map(str, range(CLASSES)))
    sources = [Images(images[part], labels[part]) for part in (train, ~train)]
    return Backbone.from_model(make_network()), TaskData("patterns", "patterns", names, *sources, None)
