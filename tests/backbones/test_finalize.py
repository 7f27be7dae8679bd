"""Normalization computes with tensors made of its variables: every copy of a network must renew them."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_layers
from piggyback_tf.backbones.networks.applications import _with_imagenet_scaling
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.masking import mask, share
from piggyback_tf.methods import METHODS
from piggyback_tf.packs.to_keras import keras_model
from piggyback_tf.surgery import bake_kernels, copy_of_base

SIZE = 8
IMAGES = np.random.default_rng(0).uniform(0, 255, (6, SIZE, SIZE, 3)).astype(np.float32)


def _normalizations(model):
    return [layer for _, layer in named_layers(model) if isinstance(layer, keras.layers.Normalization)]


def _backbone():
    images = keras.Input((SIZE, SIZE, 3))
    normalization = keras.layers.Normalization()
    normalization.adapt(IMAGES)
    x = keras.layers.Conv2D(6, 3, use_bias=False)(normalization(images))
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x)), "normalised")


def test_copies_answer_as_the_base():
    backbone = _backbone()
    base = backbone.model
    expected = base(IMAGES, training=False)
    for copy in (mask(base), share(base), copy_of_base(base), bake_kernels(base)):
        np.testing.assert_array_equal(copy(IMAGES, training=False), expected)
    head = {"kernel": np.eye(6, dtype=np.float32), "bias": np.zeros(6, np.float32)}
    plain = keras_model(backbone, HeadSpec("dense", 6), "softmax", {}, head)
    np.testing.assert_allclose(plain(IMAGES, training=False), keras.ops.softmax(expected), rtol=1e-6)


# One is for networks without batch norm alone.
@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "ssf"])
def test_networks_of_every_method_normalise_as_the_base(name):
    backbone, kind = _backbone(), METHODS[name]
    (normalization,) = _normalizations(backbone.model)
    method = kind(heads={"a": 3} if kind.Config.at_once else None)
    networks = [method.build(backbone, 3)]
    if not kind.makes_pack:
        method.begin_training(networks[0])
        for phase in range(len(method.phases(4))):
            networks[0] = method.begin_phase(networks[0], phase)
        memory = method.remember(networks[0], backbone, "a", [(IMAGES, np.arange(6) % 3)])
        networks.append(kind(method.config, memory).recall(backbone, "a"))
        if kind.sequential:
            networks.append(kind(method.config, memory).build(backbone, 2))
    for network in networks:
        found = _normalizations(network)
        assert found
        for layer in found:
            np.testing.assert_array_equal(layer.mean, normalization.mean)
            np.testing.assert_array_equal(layer.variance, normalization.variance)


@pytest.mark.slow
def test_efficientnet_reads_its_mean_from_files_and_from_the_published_network(tmp_path):
    plain = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg", name="efficientnet_b0"
    )
    (normalization,) = _normalizations(plain)
    normalization.adapt_mean.assign([0.485, 0.456, 0.406])
    normalization.adapt_variance.assign([0.229, 0.224, 0.225])
    normalization.finalize_state()
    found = [_with_imagenet_scaling(plain, keep_weights=True)]
    for name in ("plain.weights.h5", "plain.keras"):
        (plain.save_weights if name.endswith("h5") else plain.save)(tmp_path / name)
        found.append(load_backbone("efficientnet_b0", weights=str(tmp_path / name), image_size=32).model)
    for network in found:
        (layer,) = _normalizations(network)
        np.testing.assert_array_equal(layer.mean, normalization.mean)
        np.testing.assert_array_equal(layer.variance, normalization.variance)
