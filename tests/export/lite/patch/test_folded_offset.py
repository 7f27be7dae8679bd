"""A scaling with an offset before a convolution without padding, which conversion folds into a bias."""

import keras
import pytest

from export.lite.options import LiteOptions
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.backbones import Backbone
from tests.packs.helpers import pack_of, trained_model


def _backbone(padding):
    keras.utils.set_random_seed(3)
    images = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(images)
    x = keras.layers.Conv2D(8, 3, padding=padding, activation="relu", name="stem")(x)
    x = keras.layers.Conv2D(12, 3, activation="relu", name="last")(x)
    return Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="own"))


@pytest.mark.parametrize(
    ("padding", "design", "works"),
    [("valid", "patch", False), ("valid", "switch", True), ("valid", "input", True), ("same", "patch", True)],
)
def test_what_works_and_what_is_said(padding, design, works, tmp_path):
    backbone = _backbone(padding)
    pack = pack_of(trained_model(backbone, classes=2), backbone, "a", 2)
    options = LiteOptions(design=design)
    if works:
        assert list(export_litert(backbone, [pack], tmp_path / "out", options).iterdir())
        return
    sentence = "such as the offset of a Rescaling before a convolution without padding. Use --design=switch or"
    with pytest.raises(ExportError, match=sentence):
        export_litert(backbone, [pack], tmp_path / "out", options)
