"""What cannot be masked is answered with a sentence, not with somebody else's error."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone
from piggyback_tf.masking import mask

layers = keras.layers


def _model(middle):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, layers.GlobalAveragePooling2D()(middle(images)), name="net")


class _Own(layers.Layer):
    """A layer that no one registered with Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def call(self, images):
        return 2.0 * images


class _Forgetful(_Own):
    def get_config(self):
        return layers.Layer.get_config(self)


def _texts(vectorise):
    texts = keras.Input((), dtype="string")
    return keras.Model(texts, layers.Dense(3)(layers.Flatten()(layers.Rescaling(0.5)(vectorise(texts)))))


def _vectorise(kind, **settings):
    layer = kind(**settings)
    layer.adapt(["a b", "c"])
    return layer


REFUSED = {
    "a string": (lambda: "resnet50", r"not its name: 'resnet50'. Load it first, .*load_backbone\('resnet50'\).model\)"),
    "nothing": (lambda: None, "Only a Keras model can be masked. Received: None."),
    "a backbone": (lambda: Backbone.from_model(_model(layers.Conv2D(2, 3))), "backbone 'net' is its attribute `model`"),
    "a layer": (lambda: layers.Lambda(lambda x: x, name="twice"), "Lambda 'twice' is neither"),
    "no kernels": (
        lambda: _model(layers.ReLU()),
        "has no layer with a kernel that can be masked; masks exist for Dense",
    ),
    "a Lambda alone": (lambda: _model(layers.Lambda(lambda x: 2 * x)), "no layer with a kernel that can be masked"),
    "text": (
        lambda: _texts(_vectorise(layers.TextVectorization, max_tokens=10, output_sequence_length=4)),
        r"\(TextVectorization\) keeps what it was adapted to outside of its weights",
    ),
    "a lookup": (lambda: _texts(_vectorise(layers.StringLookup)), r"\(StringLookup\) keeps what it was adapted to"),
    "no get_config": (
        lambda: _model(lambda images: layers.Conv2D(2, 3)(_Own(np.zeros(3), name="own")(images))),
        r"Layer 'own' \(_Own\) cannot be copied: .* a class of your own needs both",
    ),
    "a get_config that forgets": (
        lambda: _model(lambda images: layers.Conv2D(2, 3)(_Forgetful(3, name="own")(images))),
        r"Layer 'own' \(_Forgetful\) cannot be copied: .*missing 1 required positional argument: 'units'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        mask(make())


def test_settings_that_are_none():
    with pytest.raises(ValueError, match="must be a piggyback_tf.MaskConfig. Received: {'kind': 'binary'}"):
        mask(_model(layers.Conv2D(2, 3)), {"kind": "binary"})


@pytest.mark.parametrize("own", [_Own(3), layers.Lambda(lambda x: 2.0 * x)])
def test_layers_that_can_be_copied_are(own):
    base = _model(lambda images: layers.Conv2D(2, 3)(own(images)))
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(mask(base)(images), base(images))
