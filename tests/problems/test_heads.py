"""Heads on networks: shapes, paths, and that a head of pixels sees what it should."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import load_backbone, named_variables
from piggyback_tf.backbones.endpoints import find_endpoints
from piggyback_tf.masking import share
from piggyback_tf.problems import HeadSpec, HeadStart, add_head
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
