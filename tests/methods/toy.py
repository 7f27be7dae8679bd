"""A network, tasks and settings so small that every method can be tried on them."""

import keras
import numpy as np

from piggyback_tf.backbones import Backbone
from piggyback_tf.data import Source, TaskData
from piggyback_tf.methods import METHODS
from piggyback_tf.sequences import SequenceSettings
from piggyback_tf.training import InputConfig, TrainConfig

SIZE = 12
CLASSES = {"stripes": 2, "spots": 3}
INPUTS = InputConfig(augment_train=f"resize({SIZE},{SIZE})", augment_eval=f"resize({SIZE},{SIZE})")


class PatternSource(Source):
    """Images of noise whose brightness grows with the class."""

    image_size = (SIZE, SIZE)

    def __init__(self, images: int, classes: int, seed: int):
        rng = np.random.default_rng(seed)
        self._labels = np.arange(images, dtype=np.int32) % classes
        noise = rng.integers(0, 60, (images, SIZE, SIZE, 3))
        self._images = (noise + (180 // classes * self._labels)[:, None, None, None]).astype(np.uint8)
        self._seed = seed

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def read(self, index: int) -> np.ndarray:
        return self._images[index]

    def describe(self, index: int) -> str:
        return f"pattern #{index}"

    def key(self, index: int) -> str:
        return str(index)

    def fingerprint(self) -> str:
        return f"{self._seed}-{len(self._labels)}"


def toy_tasks() -> dict[str, TaskData]:
    """Returns two tasks with different numbers of classes."""
    return {
        name: TaskData(
            name,
            name,
            tuple(f"{name}{c}" for c in range(classes)),
            PatternSource(20, classes, 10 * classes),
            PatternSource(9, classes, 10 * classes + 1),
            PatternSource(9, classes, 10 * classes + 2),
        )
        for name, classes in CLASSES.items()
    }


def toy_backbone(norm: bool = True, chain: bool = False) -> Backbone:
    """Returns a residual network of three convolutions and a dense layer.

    Args:
        norm: Whether there is batch norm, which is not at its start; else two of the convolutions have biases.
        chain: Whether nothing is added.
    """
    rng = np.random.default_rng(0)
    images = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scaling")(images)
    for name, stride in (("first", 2), ("second", 1)):
        y = keras.layers.Conv2D(8, 3, stride, padding="same", use_bias=not norm, name=f"{name}_conv")(x)
        y = keras.layers.BatchNormalization(name=f"{name}_norm")(y) if norm else y
        y = keras.layers.ReLU(name=f"{name}_relu")(y)
        x = y if stride == 2 or chain else keras.layers.Add(name="add")([x, y])
    x = keras.layers.Conv2D(12, 3, padding="same", activation="relu", name="third_conv")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = keras.layers.Dense(10, activation="relu", name="dense")(x)
    model = keras.Model(images, x, name="toy")
    for variable in model.weights:
        scale = 0.3 if len(variable.shape) > 1 else 0.1
        value = scale * rng.standard_normal(variable.shape)
        variable.assign(1.0 + np.abs(value) if "gamma" in variable.name or "variance" in variable.name else value)
    return Backbone.from_model(model, image_size=SIZE)


# In so few steps nothing else would happen.
SHORT = {"pathnet": {"pathnet_steps": 1, "pathnet_population": 3, "pathnet_modules": 3, "pathnet_active": 2}}


def toy_settings(method: str, **train: object) -> SequenceSettings:
    """Returns the method's own recipe, shortened."""
    kind = METHODS[method]
    config = TrainConfig(
        **{**kind.Config.recipe, "epochs": 4, "batch_size": 10, "chance_epochs": 0, "warmup_steps": 2, **train}
    )
    return SequenceSettings(method, kind.Config(**SHORT.get(method, {})), config, INPUTS)
