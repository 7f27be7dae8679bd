"""Layers with derived kernels: saved, loaded, and baked into Keras' own layers."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import layer_weights
from piggyback_tf.methods.dan import MIXED_LAYERS
from piggyback_tf.methods.packnet import OWNED_LAYERS
from piggyback_tf.methods.residual_adapters import ADAPTED_LAYERS
from piggyback_tf.surgery import bake_kernels

LAYERS = {
    "dense": (keras.layers.Dense, {"units": 2}),
    "conv": (keras.layers.Conv2D, {"filters": 5, "kernel_size": 3, "activation": "relu"}),
    "depthwise": (keras.layers.DepthwiseConv2D, {"kernel_size": 3, "use_bias": False}),
    "transpose": (keras.layers.Conv2DTranspose, {"filters": 5, "kernel_size": 3}),
    "separable": (keras.layers.SeparableConv2D, {"filters": 5, "kernel_size": 3}),
}
CASES = [
    (kinds, name)
    for kinds in (OWNED_LAYERS, MIXED_LAYERS, ADAPTED_LAYERS)
    for name, (kind, _) in LAYERS.items()
    if kind in kinds
]
IMAGES = np.random.default_rng(0).standard_normal((2, 6, 6, 3)).astype(np.float32)


@pytest.fixture(params=CASES, ids=lambda case: f"{next(iter(case[0].values())).__name__[:5]}-{case[1]}", name="model")
def _model(request):
    """A model of one layer with a derived kernel whose variables are all at random."""
    kinds, name = request.param
    kind, arguments = LAYERS[name]
    model = keras.Sequential([keras.Input(IMAGES.shape[1:]), kinds[kind](**arguments, name="layer")])
    rng = np.random.default_rng(1)
    for variable in model.weights:
        random = (
            rng.integers(0, 2, variable.shape) if variable.dtype == "uint8" else rng.standard_normal(variable.shape)
        )
        variable.assign(random)
    return model


def test_a_saved_model_comes_back(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(IMAGES), model(IMAGES))
    assert type(loaded.layers[0]) is type(model.layers[0])
    flags = [{name: v.trainable for name, v in layer_weights(m.layers[0]).items()} for m in (model, loaded)]
    assert flags[0] == flags[1]


def test_a_baked_model_computes_the_same_with_layers_of_keras(model):
    plain = bake_kernels(model)
    assert type(plain.layers[0]).__module__.startswith("keras.")
    assert np.array_equal(plain(IMAGES), model(IMAGES))
    stored = {name: keras.ops.convert_to_numpy(v) for name, v in layer_weights(model.layers[0]).items()}
    changed = [name for name, v in layer_weights(plain.layers[0]).items() if not np.array_equal(v, stored[name])]
    assert changed == list(model.layers[0].kernel_names)


def test_lora_and_quantisation_are_refused(model):
    with pytest.raises(ValueError, match="LoRA"):
        model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="quantised"):
        model.layers[0].quantize("int8")
