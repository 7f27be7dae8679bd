"""Endpoints: the last tensor of each stride that every path passes."""

import keras
import pytest

from piggyback_tf.backbones import load_backbone
from piggyback_tf.backbones.endpoints import find_endpoints


def found(name: str, size: int) -> dict[int, str]:
    model = load_backbone(name, weights="random", image_size=size).model
    return {endpoint.stride: endpoint.layer for endpoint in find_endpoints(model) if endpoint.stride >= 4}


def test_endpoints_of_known_networks():
    assert found("mobilenet_v2", 96) == {
        4: "block_3_expand_relu",
        8: "block_6_expand_relu",
        16: "block_13_expand_relu",
        32: "out_relu",
    }
    assert found("resnet50_v2", 64)[4] == "conv2_block2_out"
    assert found("vgg16_notop", 64) == {4: "block3_conv3", 8: "block4_conv3", 16: "block5_conv3", 32: "block5_pool"}


@pytest.mark.slow
def test_sizes_need_not_halve():
    assert found("inception_v3", 299) == {4: "activation_4", 8: "mixed2", 16: "mixed7", 32: "mixed10"}


def test_a_tensor_that_a_path_goes_around_is_none():
    layers, images = keras.layers, keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", name="stem")(images)
    inside = layers.Conv2D(4, 3, padding="same", name="inside")(x)
    x = layers.Add(name="sum")([x, inside])
    long = layers.Conv2D(4, 3, 2, padding="same", name="half")(x)
    around = layers.AveragePooling2D(2, name="around")(x)
    x = layers.Add(name="joined")([long, around])
    x = layers.ZeroPadding2D(1, name="border")(x)
    x = layers.Conv2D(4, 3, name="last")(x)
    model = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    assert {e.stride: e.layer for e in find_endpoints(model)} == {2: "sum", 4: "last"}
    (two, four) = find_endpoints(model)
    assert (two.height, two.width, two.channels) == (16, 16, 4) and (four.height, four.width) == (8, 8)
