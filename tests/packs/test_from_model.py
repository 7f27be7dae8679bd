"""From models of any training loop to a pack: what is a task's model, and what is not."""

import re

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, named_variables
from piggyback_tf.masking import mask, masked_weights
from piggyback_tf.packs import PackError, TaskBank, TaskPack

layers = keras.layers


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    keras.utils.set_random_seed(0)
    maps = keras.Input((None, None, 4))
    inner = keras.Model(maps, layers.DepthwiseConv2D(3, name="deep")(maps), name="inner")
    images = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(inner(layers.Conv2D(4, 3, name="conv")(images)))
    return Backbone.from_model(keras.Model(images, layers.GlobalAveragePooling2D()(x), name="base"))


def _masked(backbone, **settings):
    masked = mask(backbone.model, **settings)
    generator = np.random.default_rng(1)
    for weight in masked_weights(masked).values():
        weight.mask_real.assign(generator.uniform(0, 1e-2, weight.mask_real.shape).astype("float32"))
    return masked


def _head(**settings):
    return layers.Dense(2, **{"name": "head", **settings})


def _pack(model, backbone):
    return TaskPack.from_model(
        model, task="t", class_names=["a", "b"], backbone=backbone, method="own", eval_augment="resize(8,8)"
    )


def _called(masked):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, _head()(masked(images)))


MODELS = {
    "sequential": lambda masked: keras.Sequential([masked, _head()]),
    "sequential with dropout": lambda masked: keras.Sequential([masked, layers.Dropout(0.5), _head()]),
    "sequential with input": lambda masked: keras.Sequential([keras.Input((8, 8, 3)), masked, _head()]),
    "twice nested": lambda masked: keras.Sequential([keras.Sequential([masked, layers.Dropout(0.5)]), _head()]),
    "functional": lambda masked: keras.Model(masked.input, _head()(masked.output)),
    "called": _called,
    "softmax": lambda masked: keras.Model(masked.input, _head(activation="softmax")(masked.output)),
}


@pytest.mark.parametrize("norm", ["frozen", "task"])
@pytest.mark.parametrize("name", MODELS)
def test_the_pack_answers_as_the_model_does(name, norm, backbone):
    masked = _masked(backbone, norm=norm)
    if norm == "task":
        masked.get_layer("norm").gamma.assign([1.5, 0.5, 2.0, 1.0])
    model = MODELS[name](masked)
    model.build((None, 8, 8, 3))
    pack = _pack(model, backbone)
    assert list(pack.masks) == ["conv/kernel", "inner/deep/kernel"]
    assert bool(pack.norm) == (norm == "task")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype("float32")
    expected = model(images, training=False)
    expected = expected if name == "softmax" else keras.ops.softmax(expected)
    found = TaskBank(backbone).add(pack).predict(images, task="t")
    np.testing.assert_allclose(found, expected, atol=1e-6)


REFUSED = {
    "a string": (lambda masked: "model", "is taken out of a functional or sequential Keras model"),
    "not built": (lambda masked: keras.Sequential([layers.Dense(2)]), "that is built"),
    "another name": (
        lambda masked: keras.Model(masked.input, _head(name="classifier")(masked.output)),
        r"no Dense layer named 'head' with a bias: keras.layers.Dense\(CLASSES, name='head'\) on the base's features",
    ),
    "a layer between": (
        lambda masked: keras.Model(masked.input, _head()(layers.Dense(7)(masked.output))),
        "The model's head stands on 7 values, and the base has 4 features",
    ),
    "a layer between of the same size": (
        lambda masked: keras.Model(masked.input, _head()(layers.Dense(4, name="mid")(masked.output))),
        "The model has the weight 'mid/kernel', which is none of the base and none of the head",
    ),
    "norm between": (
        lambda masked: keras.Sequential([masked, layers.BatchNormalization(name="more"), _head()]),
        "The model has the weight 'more/gamma'",
    ),
    "sigmoid": (
        lambda masked: keras.Model(masked.input, _head(activation="sigmoid")(masked.output)),
        "The model's head has the activation 'sigmoid'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_pack_cannot_hold_is_said(name, backbone):
    make, sentence = REFUSED[name]
    model = make(_masked(backbone))
    if name == "norm between":
        model.build((None, 8, 8, 3))
    with pytest.raises(PackError, match=sentence):
        _pack(model, backbone)


def test_another_base_is_said(backbone):
    images = keras.Input((8, 8, 3))
    other = mask(keras.Model(images, layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="other")(images))))
    model = keras.Sequential([other, _head()])
    model.build((None, 8, 8, 3))
    assert "conv/kernel" in named_variables(backbone.model)
    with pytest.raises(PackError, match="lacks the base's weight 'conv/kernel', or has its layer under another name"):
        _pack(model, backbone)


@pytest.mark.parametrize("given", ["mine.keras", "model"])
def test_a_backbone_that_is_none_is_said(given, backbone):
    model = keras.Sequential([mask(backbone.model), _head()])
    with pytest.raises(PackError, match="backbone must be a Backbone; Backbone.from_model makes one of a Keras model"):
        _pack(model, backbone.model if given == "model" else given)


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        ("resise(8,8)", "Unknown augmentation 'resise'. Did you mean 'resize'"),
        ("resize(8,8)|flip", "Only training may draw random numbers"),
        ("resize(9,9)", "gives images of 9x9 pixels, and the base takes 8x8"),
        ("resize(9)|central_crop(7)", "gives images of 7x7 pixels"),
    ],
)
def test_an_augmentation_of_which_no_answer_would_come_is_refused_before_there_is_a_pack(augment, sentence, backbone):
    model = MODELS["functional"](_masked(backbone))
    given = {"task": "t", "class_names": ["a", "b"], "backbone": backbone, "method": "own"}
    with pytest.raises(PackError, match=re.escape(sentence)):
        TaskPack.from_model(model, eval_augment=augment, **given)
    for good in ("", "resize(8)", "resize(9)|central_crop(8)"):
        assert TaskPack.from_model(model, eval_augment=good, **given).eval_augment == good
