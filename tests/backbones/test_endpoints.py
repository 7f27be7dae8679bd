"""Endpoints: the last tensor of each stride that every path passes."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_variables
from piggyback_tf.backbones.endpoints import find_endpoints
from piggyback_tf.backbones.paths import is_container
from piggyback_tf.masking import MaskConfig, mask, masked_weights, share
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import HeadSpec, HeadStart, add_head, network_for
from piggyback_tf.surgery import for_image_shape


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


def nested_network() -> Backbone:
    """Returns a network with models within it, as a network of one's own may be saved: one called without training."""
    layers = keras.layers
    inside = keras.Input((None, None, 8), name="inside")
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(inside)
    x = layers.Dropout(0.5, name="never")(x)
    body = keras.Model(inside, layers.Add()([x, layers.Conv2D(8, 1, name="mix")(x)]), name="body")
    stem = keras.Sequential(
        [keras.Input((32, 32, 3)), layers.Conv2D(8, 3, 2, padding="same"), layers.BatchNormalization()], name="stem"
    )
    images = keras.Input((32, 32, 3))
    x = body(stem(images), training=False)
    x = layers.Conv2D(6, 3, 2, padding="same", name="last")(body(x, training=False))
    return Backbone.from_model(keras.Model(images, layers.GlobalAveragePooling2D()(x), name="nested"), image_size=32)


def test_models_within_a_network_are_flattened():
    backbone = nested_network()
    # What is within a model has no tensor that the outer one could be tapped at.
    flat = for_image_shape(backbone.model, (32, 32))
    assert not any(is_container(layer) for layer in flat.layers)
    first, second = named_variables(backbone.model), named_variables(flat)
    assert set(first) == set(second) and {"stem/conv2d/kernel", "body/mix/kernel", "last/kernel"} < set(first)
    assert all(first[path].value is second[path].value for path in first)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)
    expected = backbone.model(images, training=False).numpy()
    assert np.array_equal(flat(images, training=False).numpy(), expected)
    # A model that is called twice has its layers twice, and none of their outputs is an endpoint.
    assert [(e.stride, e.layer) for e in find_endpoints(flat)] == [(2, "stem/batch_normalization"), (16, "last")]
    assert np.array_equal(share(flat)(images, training=False).numpy(), expected)


def test_a_task_on_a_nested_network_keeps_the_paths_of_its_base():
    backbone, spec = nested_network(), HeadSpec("fpn", 3, 8, (32, 64))
    network, endpoints = network_for(backbone, spec)
    model = add_head(mask(network.model, MaskConfig()), spec, HeadStart(init="glorot"), endpoints)
    for number, weight in enumerate(masked_weights(model).values()):
        rng = np.random.default_rng(number)
        weight.mask_real.assign(rng.uniform(0.0, 0.03, weight.mask_real.shape))
    pack = TaskPack.from_model(
        model,
        task="parts",
        class_names=["a", "b", "c"],
        backbone=backbone,
        method="piggyback",
        eval_augment="resize(32,64)",
        problem="map",
    )
    assert list(pack.masks) == [path for path in named_variables(backbone.model) if path.endswith("/kernel")]
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 64, 3)).astype(np.uint8)
    bank = TaskBank(backbone).add(pack)
    expected = model.predict(images, verbose=0)
    assert np.array_equal(bank.predict(images, task="parts"), expected.argmax(axis=-1))
    np.testing.assert_allclose(
        bank.to_keras("parts").predict(images, verbose=0), keras.ops.softmax(expected), rtol=1e-4, atol=1e-5
    )


def test_cells_are_named_where_a_path_goes_around_all_of_them():
    backbone = load_backbone("nasnet_mobile", weights="random", image_size=64)
    assert {e.stride: e.layer for e in find_endpoints(backbone.model) if 4 <= e.stride <= 16} == {}
    found = {e.stride: e.layer for e in find_endpoints(backbone.model, backbone.endpoints) if e.stride >= 4}
    cells = dict(zip((4, 8, 16), backbone.endpoints, strict=True))
    assert found == {**cells, 32: found[32]}
    # Each is the last cell of its stride.
    names = [layer.name for layer in backbone.model.layers]
    sizes = {layer.name: layer.output.shape[1] for layer in backbone.model.layers if "_concat_" in layer.name}
    for cell in cells.values():
        later = [name for name in sizes if names.index(name) > names.index(cell)]
        assert all(sizes[name] < sizes[cell] for name in later), cell
