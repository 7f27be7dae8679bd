"""Narrow networks as torchvision has them, and the Wide ResNet, as LiteRT models that devices patch."""

import functools

import keras
import numpy as np
import pytest

from export.lite.options import LiteOptions
from export.litert import export_litert
from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.backbones.networks.wide_resnet import build_wide_resnet
from tests.backbones.test_tensor_weights import SMALL
from tests.packs.helpers import pack_of, trained_model

NETWORKS = {name: small.build for name, small in SMALL.items() if name != "vgg of torchvision"} | {
    "wide resnet": functools.partial(build_wide_resnet, depth=10, factor=1)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_device_can_patch_it(name, tmp_path):
    keras.utils.set_random_seed(5)
    model, draw = NETWORKS[name](64), np.random.default_rng(5)
    for path, variable in named_variables(model).items():
        if not path.endswith("/kernel"):
            variable.assign(variable + draw.uniform(0.0, 0.2, variable.shape))
    backbone = Backbone.from_model(model, name="narrow")
    pack = pack_of(trained_model(backbone, classes=3), backbone, "a", 3)
    # What is written has answered as the bank does.
    folder = export_litert(backbone, [pack], tmp_path / "out", LiteOptions())
    assert {"base.tflite", "a.edge"} <= {path.name for path in folder.iterdir()}
