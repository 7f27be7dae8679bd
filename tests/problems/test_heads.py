"""Heads on networks: shapes, paths, and that a head of pixels sees what it should."""

import dataclasses

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_variables
from piggyback_tf.backbones.endpoints import find_endpoints
from piggyback_tf.head_spec import padded_shape
from piggyback_tf.masking import share
from piggyback_tf.problems import HeadSpec, HeadStart, add_head, network_for
from piggyback_tf.surgery.image_shape import for_image_shape


def on_shapesnet(spec: HeadSpec, start: HeadStart = HeadStart()) -> keras.Model:  # noqa: B008  (frozen)
    network = share(for_image_shape(load_backbone("shapesnet", image_size=32).model, (40, 56)))
    endpoints = [endpoint for endpoint in find_endpoints(network) if endpoint.stride >= 4]
    return add_head(network, spec, start, endpoints if spec.kind == "fpn" else ())


def test_a_pyramid_answers_for_each_pixel():
    model = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)))
    assert model.output_shape == (None, 40, 56, 5)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3)).astype(np.uint8)
    # The logits start at zero, so that the loss starts at guessing.
    assert not model(images).numpy().any()
    glorot = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)), HeadStart(init="glorot", seed=3))
    logits = glorot(images).numpy()
    assert logits.dtype == np.float32 and logits.std() > 1e-3
    # What is changed in a corner of the image shows there.
    changed = images.copy()
    changed[:, :6, :6] = 255 - changed[:, :6, :6]
    apart = np.abs(glorot(changed).numpy() - logits).max(axis=(0, 3))
    assert apart[:8, :8].mean() > 2 * apart[-8:, -8:].mean() and apart[:8, :8].min() > 0


def test_the_weights_of_a_head_are_under_its_name():
    model = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)))
    own = [path for path in named_variables(model) if path.startswith("head/")]
    assert "head/logits/kernel" in own and "head/lateral_0/kernel" in own and "head/smooth_0_norm/gamma" in own
    assert len(named_variables(model)) == len(own) + len(named_variables(load_backbone("shapesnet").model))


def test_a_head_starts_the_same_whatever_ran_before():
    first = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)), HeadStart(seed=1))
    keras.layers.Dense(3)(keras.Input((4,)))
    second = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)), HeadStart(seed=1))
    third = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)), HeadStart(seed=2))
    values = [{path: v.numpy() for path, v in named_variables(m).items()} for m in (first, second, third)]
    assert values[0].keys() == values[1].keys()
    assert all(np.array_equal(values[0][path], values[1][path]) for path in values[0])
    assert not np.array_equal(values[0]["head/lateral_0/kernel"], values[2]["head/lateral_0/kernel"])


def test_specs_are_kept_as_json():
    spec = HeadSpec("fpn", 5, 16, (40, 56))
    assert spec.to_json() == {"kind": "fpn", "classes": 5, "width": 16, "image_shape": [40, 56]}
    assert HeadSpec.from_json(spec.to_json()) == spec
    assert HeadSpec.from_json({"kind": "dense", "classes": 3}) == HeadSpec("dense", 3)
    for wrong in ({"kind": "fpn"}, {"kind": 3, "classes": 2}, {"kind": "fpn", "classes": 2, "image_shape": [3]}):
        with pytest.raises(ValueError, match="A head needs a kind"):
            HeadSpec.from_json(wrong)


def test_a_call_that_does_not_say_so_is_no_training():
    model = on_shapesnet(HeadSpec("fpn", 5, 16, (40, 56)), HeadStart(init="glorot"))
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 56, 3)).astype(np.uint8)
    before = {path: v.numpy() for path, v in named_variables(model).items()}
    first = model(images).numpy()
    assert np.array_equal(first, model(images, training=False).numpy())
    assert all(np.array_equal(v.numpy(), before[path]) for path, v in named_variables(model).items())
    assert not np.array_equal(first, model(images, training=True).numpy())


def test_a_network_without_feature_maps_is_refused():
    images = keras.Input((32, 32, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, padding="same", name="only")(images))
    backbone = Backbone.from_model(keras.Model(images, x), name="flat", image_size=32)
    with pytest.raises(ValueError, match="Backbone 'flat' has no feature map of stride 4 or more"):
        network_for(backbone, HeadSpec("fpn", 2, 8, (32, 64)))


@pytest.mark.parametrize("shape", [(40, 56), (64, 96), (33, 32)])
def test_images_are_padded_to_multiples_of_32_and_answers_cropped(shape):
    backbone = load_backbone("shapesnet", image_size=32)
    spec, padded = HeadSpec("fpn", 5, 8, shape), padded_shape(shape)
    assert padded == (64, 64 if shape[1] == 56 else shape[1])
    images = np.random.default_rng(0).integers(0, 256, (2, *shape, 3)).astype(np.float32)
    start = HeadStart(init="glorot", seed=1)
    network, endpoints = network_for(backbone, spec)
    logits = add_head(share(network.model), spec, start, endpoints)(images)
    assert logits.shape == (2, *shape, 5)
    # As if black pixels stood in the images, and what is found of them were thrown away.
    whole, whole_endpoints = network_for(backbone, dataclasses.replace(spec, image_shape=padded))
    by_hand = np.zeros((2, *padded, 3), np.float32)
    by_hand[:, : shape[0], : shape[1]] = images
    model = add_head(share(whole.model), dataclasses.replace(spec, image_shape=padded), start, whole_endpoints)
    assert [e.stride for e in endpoints] == [e.stride for e in whole_endpoints] == [4, 8]
    expected = model(by_hand).numpy()[:, : shape[0], : shape[1]]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-4, atol=1e-5)
    if shape == padded:
        # Nothing is added where nothing is missing.
        assert not any(isinstance(layer, keras.layers.ZeroPadding2D) for layer in network.model.layers)


def test_decoders_take_the_finer_size_where_sizes_do_not_halve():
    # As in Inception: convolutions without a border make maps of 31, 15, 13, 6 and 4.
    layers, images = keras.layers, keras.Input((64, 64, 3))
    x = images
    for number, stride in enumerate((2, 2, 1, 2, 1)):
        x = layers.Conv2D(4, 3, stride, activation="relu", name=f"conv_{number}")(x)
    model = keras.Model(images, layers.GlobalAveragePooling2D()(x))
    backbone = Backbone.from_model(model, name="odd", image_size=64)
    spec = HeadSpec("fpn", 3, 8, (64, 96))
    network, endpoints = network_for(backbone, spec)
    assert [(e.stride, e.height, e.width) for e in endpoints] == [(4, 13, 21), (8, 6, 10), (16, 4, 8)]
    model = add_head(share(network.model), spec, HeadStart(init="glorot"), endpoints)
    logits = model(np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype(np.float32)).numpy()
    assert logits.shape == (1, 64, 96, 3) and logits.std() > 1e-3
