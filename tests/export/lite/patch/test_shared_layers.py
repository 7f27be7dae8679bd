"""A layer that a network calls twice, on activations of different ranges: integers need two of its constants."""

import keras
import numpy as np

from export.edge.piggyback_edge import Base, Model, Task
from export.lite.checks import run_model
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.litert import export_litert
from piggyback_tf.backbones import Backbone
from piggyback_tf.packs import TaskBank
from tests.export.lite.conftest import noise
from tests.packs.helpers import pack_of, trained_model


def _backbone():
    keras.utils.set_random_seed(0)
    layers, rng = keras.layers, np.random.default_rng(1)
    images = keras.Input((16, 16, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(images)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="stem")(x)
    twice = layers.Conv2D(8, 3, padding="same", use_bias=False, name="twice")
    norm, relu = layers.BatchNormalization(name="norm"), layers.ReLU(name="relu")
    x = layers.Rescaling(3.0, name="larger")(relu(norm(twice(x))))
    x = layers.GlobalAveragePooling2D(name="pool")(relu(norm(twice(x))))
    draws = (rng.uniform(0.5, 1.5, 8), rng.normal(0, 0.3, 8), rng.normal(0, 0.1, 8), rng.uniform(0.3, 1, 8))
    norm.set_weights(draws)
    return Backbone.from_model(keras.Model(images, x, name="twice"), image_size=16)


def test_a_task_changes_the_constants_of_both_calls(tmp_path, monkeypatch):
    backbone, images = _backbone(), noise(16, 8)
    pack = pack_of(trained_model(backbone, classes=4, norm="task"), backbone, "own", 4)
    monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [images for _ in packs])
    export_litert(backbone, [pack], tmp_path / "out", LiteOptions(quantize="int8", representative_data="images"))
    base = Base.load(tmp_path / "out" / "base.tflite")
    task, model = Task.load(tmp_path / "out" / "own.edge", base.manifest), Model(base)
    model.install(task)
    content = bytes(model.data)
    expected = TaskBank(backbone).add(pack).predict(images, task="own")
    # With the constant of one call alone it was 0.1.
    assert np.abs(task.probabilities(run_model(content, images), content) - expected).max() < 3e-3
