"""Residual adapters: where they stand, what they compute, and that nothing else is learned."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, named_layers, named_variables
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.residual_adapters import ResidualAdaptersConfig
from piggyback_tf.surgery import BaseVariable
from tests.methods.learning import check_old_tasks_stay, learn, noise_images
from tests.methods.toy import SIZE, toy_backbone

ResidualAdapters = METHODS["residual_adapters"]
CONVOLUTIONS = ("first_conv", "second_conv", "third_conv")


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def _network(*layers, sequential=False):
    """Returns a backbone of some layers over images of 9x9 pixels, pooled."""
    keras.utils.set_random_seed(0)
    layers = [*layers, keras.layers.GlobalAveragePooling2D(name="pool")]
    if sequential:
        return Backbone.from_model(keras.Sequential([keras.Input((9, 9, 3)), *layers], name="net"))
    x = images = keras.Input((9, 9, 3))
    for layer in layers:
        x = layer(x)
    return Backbone.from_model(keras.Model(images, x, name="net"))


def _conv(filters, size=3, **arguments):
    return keras.layers.Conv2D(filters, size, bias_initializer="normal", **arguments)


def _nested():
    images = keras.Input((9, 9, 3))
    return keras.Model(
        images, _conv(5, strides=2, padding="valid", activation="relu", name="conv")(images), name="stem"
    )


def _odd():
    """A nested convolution with strides, one that occurs twice, one with dilation, and four that are not full 3x3."""
    twice = _conv(5, padding="same", activation="tanh", name="twice")
    return _network(
        _nested(),
        twice,
        twice,
        _conv(6, padding="same", dilation_rate=2, name="dilated"),
        _conv(6, padding="same", groups=2, name="grouped"),
        keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise"),
        _conv(4, 1, name="small"),
        _conv(4, 5, padding="same", name="large"),
    )


def _features(backbone, kind, **settings):
    return ResidualAdapters(ResidualAdaptersConfig(adapter_kind=kind, **settings)).feature_model(backbone, 0)


@pytest.mark.parametrize("kind", ["series", "parallel"])
@pytest.mark.parametrize("network", [toy_backbone, _odd])
def test_starts_as_the_base_bit_for_bit(network, kind):
    backbone = network()
    digest, flags = backbone.hash, [variable.trainable for variable in backbone.model.variables]
    images = noise_images(backbone.image_size)
    model = _features(backbone, kind)
    assert np.array_equal(model(images, training=False), backbone.model(images, training=False))
    model.trainable = True
    assert backbone.hash == digest
    assert [variable.trainable for variable in backbone.model.variables] == flags


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("parallel", {"stem/conv/adapter": (3, 5), "twice/adapter": (5, 5), "dilated/adapter": (5, 6)}),
        (
            "series",
            {
                "stem/conv_adapter/kernel": (1, 1, 5, 5),
                "twice_adapter/kernel": (1, 1, 5, 5),
                "dilated_adapter/kernel": (1, 1, 6, 6),
            },
        ),
    ],
)
def test_adapters_stand_at_full_3x3_convolutions(kind, expected):
    model = _features(_odd(), kind)
    trainable = {id(variable) for variable in model.trainable_variables}
    found = {path: v.shape for path, v in named_variables(model).items() if id(v) in trainable and "norm" not in path}
    assert found == expected


def test_everything_else_is_the_base_and_is_not_remembered(backbone, tmp_path):
    model = ResidualAdapters().build(backbone, 3)
    groups = ResidualAdapters().groups(model)
    assert set(groups) == {"adapter", "norm", "head"}
    own = {path for path, v in named_variables(model).items() if not isinstance(v, BaseVariable)}
    norm = {f"{name}_norm/{part}" for name in ("first", "second") for part in ("gamma", "beta")}
    assert own == {f"{conv}/adapter" for conv in CONVOLUTIONS} | norm | {"head/kernel", "head/bias"}
    memory, _ = learn(ResidualAdapters(), backbone, "one", tmp_path / "memory")
    assert set(memory.of("one")) == own
    assert not memory.shared


@pytest.mark.parametrize("arguments", [{"strides": 2, "padding": "valid"}, {"padding": "same", "dilation_rate": 2}])
def test_parallel_adds_a_convolution_of_the_centres(arguments):
    backbone = _network(_conv(4, activation="relu", name="conv", **arguments))
    model = _features(backbone, "parallel")
    layer = model.get_layer("conv")
    adapter = np.random.default_rng(0).standard_normal(layer._adapter.shape).astype(np.float32)
    layer._adapter.assign(adapter)
    images = noise_images(9) / 255
    plain = keras.Model(backbone.model.input, backbone.model.get_layer("conv").output)
    plain.layers[-1].activation = keras.activations.linear
    centres = images[:, 1:-1:2, 1:-1:2] if "strides" in arguments else images
    expected = np.maximum(plain(images) + centres @ adapter, 0).mean((1, 2))
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-5)


def test_series_adds_a_normalised_convolution_before_the_activation():
    backbone = _network(_conv(4, activation="relu", name="conv"))
    model = _features(backbone, "series")
    rng, weights = np.random.default_rng(0), named_variables(model)
    for variable in weights.values():
        if not isinstance(variable, BaseVariable):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    images = noise_images(9) / 255
    y = keras.Model(backbone.model.input, backbone.model.get_layer("conv").output)
    y.layers[-1].activation = keras.activations.linear
    y = np.asarray(y(images))
    gamma, beta, mean, variance = (
        np.asarray(weights[f"conv_adapter_norm/{name}"]) for name in ("gamma", "beta", "moving_mean", "moving_variance")
    )
    normed = (y - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    expected = np.maximum(y + normed @ np.asarray(weights["conv_adapter/kernel"])[0, 0], 0).mean((1, 2))
    np.testing.assert_allclose(model(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["series", "parallel"])
def test_old_tasks_answer_bit_for_bit_the_same(backbone, tmp_path, kind):
    check_old_tasks_stay(ResidualAdapters, backbone, tmp_path / "memory", adapter_kind=kind)


def test_parallel_costs_nothing_once_it_is_learned(backbone, tmp_path):
    memory, _ = learn(ResidualAdapters(), backbone, "one", tmp_path / "memory")
    network = ResidualAdapters(None, memory).recall(backbone, "one")
    found, expected = (
        {path: type(layer) for path, layer in named_layers(model) if not isinstance(layer, keras.layers.InputLayer)}
        for model in (network, backbone.model)
    )
    assert found == {**expected, "head": keras.layers.Dense}


def test_networks_that_have_no_place_for_adapters_are_refused(backbone):
    small = _network(_conv(4, 1, name="small"), keras.layers.DepthwiseConv2D(3, name="depthwise"))
    with pytest.raises(ValueError, match="'net' has no full 3x3 convolution"):
        ResidualAdapters().build(small, 2)
    sequential = _network(_conv(4, name="conv"), sequential=True)
    nested = _network(keras.Sequential([keras.Input((9, 9, 3)), _conv(4, name="conv")], name="stem"))
    with pytest.raises(ValueError, match="adapter_kind='parallel'"):
        _features(nested, "series")
    for backbone, kind in ((nested, "parallel"), (sequential, "parallel"), (sequential, "series")):
        assert np.array_equal(_features(backbone, kind)(noise_images(9)), backbone.model(noise_images(9)))
    with pytest.raises(ValueError, match="series, parallel"):
        ResidualAdaptersConfig(adapter_kind="both")


def test_batch_norm_follows_the_task_quickly_if_its_statistics_are_to(backbone):
    model = _features(backbone, "series", norm_statistics="task")
    norms = [layer for _, layer in named_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 5
    assert {layer.momentum for layer in norms} == {0.9}
    images = noise_images(SIZE)
    assert not np.allclose(model(images, training=True), model(images, training=False), atol=1e-3)
