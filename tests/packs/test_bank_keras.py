"""A task as a plain Keras model, which needs nothing of this package."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.backbones.preprocessing import preprocess_images
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import pack_of, packs_of_all_kinds, small_backbone, trained_model

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
# Loads a model where this package cannot be imported, wherever it is installed.
_ELSEWHERE = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "piggyback_tf":
            raise ImportError("blocked")
sys.meta_path.insert(0, Blocker())
try:
    import piggyback_tf
except ImportError:
    pass
else:
    sys.exit("piggyback_tf could be imported")
import keras, numpy as np
model = keras.models.load_model(sys.argv[1])
np.save(sys.argv[3], model.predict_on_batch(np.load(sys.argv[2])))
"""


def _predict_elsewhere(model, images, folder):
    model.save(folder / "task.keras")
    np.save(folder / "images.npy", images)
    arguments = [folder / name for name in ("task.keras", "images.npy", "found.npy")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, *arguments], capture_output=True, text=True, cwd=folder, env=environment
    )
    assert run.returncode == 0, run.stderr
    return np.load(arguments[2])


def test_the_model_gives_the_probabilities_of_the_bank():
    backbone = small_backbone()
    bank, before = TaskBank(backbone), backbone.hash
    for pack in packs_of_all_kinds(backbone):
        model = bank.add(pack).to_keras(pack.task)
        expected = bank.predict(IMAGES, task=pack.task)
        np.testing.assert_allclose(model.predict_on_batch(IMAGES), expected, rtol=0, atol=1e-6)
        values = {path: variable.numpy() for path, variable in named_variables(model).items()}
        base = {path: variable.numpy() for path, variable in named_variables(backbone.model).items()}
        for path in pack.masks:
            np.testing.assert_array_equal(values[path], base[path] * pack.mask(path))
            assert not np.signbit(values[path][pack.mask(path) == 0]).any(), "dropped weights are +0.0"
        # It is the caller's: a training of it does not reach the base, nor the bank.
        for variable in model.variables:
            variable.assign(variable + 1)
        np.testing.assert_array_equal(bank.predict(IMAGES, task=pack.task), expected)
    assert backbone.hash == before
    with pytest.raises(ValueError, match="Unknown task"):
        bank.to_keras("fish")


@pytest.mark.slow
def test_the_model_loads_without_this_package(tmp_path):
    # "caffe" is the preprocessing with an operation that is no layer.
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(5, 3, activation="relu")(preprocess_images(inputs, "caffe"))
    backbone = Backbone.from_model(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="small"))
    bank = TaskBank(backbone).add(pack_of(trained_model(backbone), backbone))
    found = _predict_elsewhere(bank.to_keras("birds"), IMAGES, tmp_path)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bank.predict(IMAGES, task="birds"), rtol=0, atol=1e-6)
