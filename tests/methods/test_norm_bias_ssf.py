"""Methods that learn vectors over frozen kernels: what each learns, and nothing else, and what a pack has of it."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_variables
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.norm_only import NormOnlyConfig
from piggyback_tf.methods.ssf import NORMALISATIONS, scale_shape
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.surgery import BaseVariable
from tests.methods.learning import noise_images
from tests.methods.toy import toy_backbone
from tests.packs.helpers import small_backbone

NORM, BIAS, SSF = (METHODS[name] for name in ("norm_only", "bias_only", "ssf"))


def _pack(model, backbone, method="own"):
    return TaskPack.from_model(
        model, task="t", class_names=["a", "b", "c"], backbone=backbone, method=method, eval_augment=""
    )


def _own(model):
    """Returns the paths of what is not the base's."""
    return {path for path, variable in named_variables(model).items() if not isinstance(variable, BaseVariable)}


def _plain():
    """Returns a backbone without batch norm, with a kernel of every kind, and layers of normalisation."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images = keras.Input((9, 9, 3))
    x = layers.Conv2D(6, 3, activation="relu", name="conv", bias_initializer="normal")(images)
    x = layers.LayerNormalization(name="layer_norm", epsilon=1e-3)(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="depthwise")(x)
    x = layers.GroupNormalization(4, name="group_norm")(x)
    x = layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = layers.Conv2DTranspose(7, 2, strides=2, name="transposed", activation="tanh")(x)
    x = layers.Conv2D(4, 1, use_bias=False, name="no_bias")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return Backbone.from_model(keras.Model(images, layers.Dense(5, name="fc")(x), name="plain"))


CASES = {
    "norm_only": (NORM, small_backbone),
    "bias_only, batch norm": (BIAS, toy_backbone),
    "bias_only, biases": (BIAS, _plain),
    "ssf": (SSF, _plain),
}


@pytest.mark.parametrize("case", CASES)
def test_it_starts_as_the_base_and_goes_through_pack_and_bank(case):
    kind, network = CASES[case]
    backbone, rng = network(), np.random.default_rng(0)
    digest, images = backbone.hash, noise_images(backbone.image_size)
    features = kind().feature_model(backbone, 0)
    assert np.array_equal(features(images, training=True), backbone.model(images, training=False))
    features.trainable = True
    model = kind().build(backbone, 3)
    for variable in model.trainable_variables:
        variable.assign(variable + 0.3 * rng.standard_normal(variable.shape))
    assert backbone.hash == digest
    pack = TaskPack.from_bytes(_pack(model, backbone).to_bytes())
    bank = TaskBank(backbone).add(pack)
    expected = keras.ops.softmax(model(images, training=False))
    np.testing.assert_allclose(bank.predict(images, "t"), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(bank.to_keras("t")(images), bank.predict(images, "t"), rtol=0, atol=1e-6)
    base = keras.ops.softmax(kind().build(backbone, 3)(images))
    assert np.abs(bank.predict(images, "t") - base).max() > 1e-3


def test_norm_only_learns_gamma_and_beta():
    backbone = toy_backbone()
    model = NORM().build(backbone, 3)
    layers = ("first_norm", "second_norm")
    assert _own(model) == {f"{x}/{y}" for x in layers for y in ("gamma", "beta")} | {"head/kernel", "head/bias"}
    assert set(NORM().groups(model)) == {"norm", "head"}
    named_variables(model)["first_norm/gamma"].assign(np.full(8, 2.0))
    pack = _pack(model, backbone)
    # What was not changed is the base's.
    assert list(pack.norm) == ["first_norm/gamma"] and not pack.parts and pack.format_version == 4


def test_norm_only_learns_statistics_where_it_is_told_to():
    backbone = toy_backbone()
    method = NORM(NormOnlyConfig(norm_statistics="task"))
    model = method.build(backbone, 3)
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    assert _own(model) == {f"{x}_norm/{y}" for x in ("first", "second") for y in names} | {"head/kernel", "head/bias"}
    images = noise_images(12)
    model(images, training=True)
    assert not np.allclose(
        model.get_layer("first_norm").moving_mean, backbone.model.get_layer("first_norm").moving_mean
    )
    pack = _pack(model, backbone)
    assert set(pack.norm) == {f"{x}_norm/{y}" for x in ("first", "second") for y in names}


def test_bias_only_learns_beta_where_a_convolution_has_no_bias():
    norm = {"first_norm/beta", "second_norm/beta"}
    rest = {"third_conv/bias", "dense/bias", "head/kernel", "head/bias"}
    assert _own(BIAS().build(toy_backbone(), 3)) == norm | rest
    assert _own(BIAS().build(toy_backbone(norm=False), 3)) == {"first_conv/bias", "second_conv/bias"} | rest
    # Where every kernel has a bias, beta would be learned twice.
    found = _own(BIAS().build(small_backbone(), 3))
    assert not {path for path in found if path.endswith("beta")}
    assert {"conv2d/bias", "inner/depthwise_conv2d/bias", "separable_conv2d/bias", "conv2d_transpose/bias"} < found


def test_a_network_without_offsets_is_refused():
    images = keras.Input((9, 9, 3))
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(images)
    x = keras.layers.BatchNormalization(center=False, name="norm")(x)
    backbone = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="net"))
    with pytest.raises(ValueError, match="'net' has neither a bias nor batch norm with one"):
        BIAS().build(backbone, 3)


def test_norm_only_says_what_learns_without_batch_norm_and_ssf_what_learns_with_it():
    with pytest.raises(ValueError, match="has no batch normalisation to train; ssf, lora and piggyback learn on such"):
        NORM().build(_plain(), 3)
    with pytest.raises(ValueError, match="has batch norm, for example 'first_norm', .* learned by norm_only"):
        SSF().build(toy_backbone(), 3)
    images = keras.Input((9, 9, 3))
    backbone = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(images), name="net"))
    with pytest.raises(ValueError, match="'net' has no layer with a kernel"):
        SSF().build(backbone, 3)


def test_ssf_scales_and_shifts_before_the_activation():
    """Each layer computes `activation(gamma (W x + b) + beta)`."""
    rng, backbone, images = np.random.default_rng(0), _plain(), noise_images(9) / 255
    model = SSF().feature_model(backbone, 0)
    for name in ("conv", "depthwise", "separable", "transposed", "no_bias", "fc"):
        own, base = model.get_layer(name), backbone.model.get_layer(name)
        x = rng.standard_normal((2, *own.input.shape[1:])).astype("float32")
        activation, base.activation = base.activation, keras.activations.linear
        plain = np.asarray(base(x))
        base.activation = activation
        gamma, beta = (rng.standard_normal(plain.shape[-1]).astype("float32") for _ in range(2))
        own._scale_offset.assign((gamma - 1).reshape(own._scale_offset.shape))
        if own.bias is None:
            beta = 0
        else:
            own.bias.assign(gamma * np.asarray(base.bias) + beta)
        np.testing.assert_allclose(own(x), activation(gamma * plain + beta), rtol=1e-3, atol=1e-4)
    assert np.isfinite(model(images)).all()
    for kind in NORMALISATIONS:
        (layer,) = [layer for layer in model.layers if type(layer) is kind]
        assert {variable.name for variable in layer.trainable_weights} == {"gamma", "beta"}


def test_the_channels_of_a_depthwise_kernel():
    assert scale_shape(keras.layers.DepthwiseConv2D, (3, 3, 6, 2)) == (1, 1, 6, 2)
    assert scale_shape(keras.layers.Conv2DTranspose, (2, 2, 7, 8)) == (1, 1, 7, 1)
    assert scale_shape(keras.layers.Dense, (7, 5)) == (1, 5)


@pytest.fixture(scope="module", name="mobilenet")
def _mobilenet():
    return load_backbone("mobilenet_v2", weights="random", image_size=32)


@pytest.mark.parametrize(
    ("method", "settings", "kilobytes"),
    [("norm_only", {}, 68), ("norm_only", {"norm_statistics": "task"}, 136), ("bias_only", {}, 34)],
)
def test_how_many_bytes_it_takes_on_mobilenet(method, settings, kilobytes, mobilenet):
    kind = METHODS[method]
    backbone = mobilenet
    model = kind(kind.Config(**settings)).build(backbone, 3)
    variables = named_variables(model)
    for path in _own(model):
        variables[path].assign(variables[path] + 0.5)
    pack = _pack(model, backbone).astype("float16")
    arrays = [*pack.norm.values(), *pack.parts.values()]
    assert sum(2 * value.size for value in arrays) / 1000 == pytest.approx(kilobytes, rel=0.01)


@pytest.mark.parametrize("method", ["norm_only", "bias_only"])
def test_segments_are_learned_too(method):
    kind = METHODS[method]
    model = kind().build(load_backbone("shapesnet", image_size=32), HeadSpec("fpn", 3, 8, (40, 56)))
    assert model.output_shape == (None, 40, 56, 3)
    # The convolutions of this network have no biases.
    assert set(kind().groups(model)) == {"norm", "head"}


def test_ssf_learns_segments_on_a_network_without_batch_norm():
    x = images = keras.Input((32, 32, 3))
    for place, filters in enumerate((4, 8)):
        x = keras.layers.Conv2D(filters, 3, strides=4, padding="same", name=f"conv{place}")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    backbone = Backbone.from_model(keras.Model(images, x, name="net"))
    model = SSF().build(backbone, HeadSpec("fpn", 3, 8, (64, 32)))
    assert model.output_shape == (None, 64, 32, 3)
    assert set(SSF().groups(model)) == {"adapter", "head"}
