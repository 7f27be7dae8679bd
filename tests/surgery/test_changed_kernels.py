"""Layers that compute with more than their kernel, quantised ones and those with LoRA, are not masked, nor a base of
other methods that change kernels."""

import keras
import numpy as np
import pytest

from export.lite.weights import Network
from export.servable.layout import WeightLayout
from piggyback_tf.backbones import Backbone
from piggyback_tf.masking import MASKED_LAYERS, mask, maskable_weights, masked_weights
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.dan import MIXED_LAYERS
from piggyback_tf.methods.hat import HELD_LAYERS
from piggyback_tf.methods.lora import LOW_RANK_LAYERS
from piggyback_tf.methods.packnet import OWNED_LAYERS
from piggyback_tf.methods.residual_adapters import ADAPTED_LAYERS
from piggyback_tf.packs import TaskBank
from piggyback_tf.packs.base_fit import MisfitError
from piggyback_tf.surgery import copy_of_base
from tests.packs.helpers import pack_of, trained_model

# Keras quantises what it can, and says of each other layer that it cannot.
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning:keras")

MODES = ("int8", "int4", "float8")
IMAGES = np.random.default_rng(0).uniform(0, 255, (4, 8, 8, 3)).astype("float32")


def base(change=None):
    """Returns a network with a quantised layer, or one with LoRA in the other."""
    keras.utils.set_random_seed(0)
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="conv", bias_initializer="normal")(images)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization(name="norm")(x))
    model = keras.Model(images, keras.layers.Dense(6, name="dense", bias_initializer="normal")(x), name="base")
    if change == "lora":
        layer = model.get_layer("conv")
        layer.enable_lora(2)
        layer.lora_kernel_b.assign(np.full(layer.lora_kernel_b.shape, 0.3))
    elif change:
        model.quantize(change)
    return model


CASES = {**{mode: ("dense", rf"Layer 'dense' \(Dense\) is quantised \({mode}\)") for mode in MODES}}
CASES["lora"] = ("conv", r"Layer 'conv' \(Conv2D\) has LoRA enabled")


@pytest.mark.parametrize("change", CASES)
def test_a_mask_that_would_do_nothing_is_refused(change):
    layer, message = CASES[change]
    model = base(change)
    with pytest.raises(ValueError, match=f"{message}.* Use the network as it was in floating point"):
        mask(model)
    # Without this layer the network is masked, and starts as the base.
    masked = mask(model, exclude=layer)
    assert f"{layer}/kernel" not in masked_weights(masked)
    np.testing.assert_array_equal(masked(IMAGES), model(IMAGES))
    (other,) = masked_weights(masked).values()
    other.mask_real.assign(np.full(other.mask_real.shape, -1.0))
    assert np.abs(masked(IMAGES) - model(IMAGES)).max() > 1e-3
    assert maskable_weights(model).keys() == {"conv/kernel", "dense/kernel"} - {f"{layer}/kernel"}


@pytest.mark.parametrize("change", CASES)
@pytest.mark.parametrize("method", ["piggyback", "packnet", "hat", "dan", "residual_adapters", "lora"])
def test_methods_that_change_kernels_refuse_them(method, change):
    if method in ("residual_adapters", "dan") and change != "lora":
        # They change no kernels of dense layers, or of ones so small.
        assert METHODS[method]().build(Backbone.from_model(base(change)), 3)(IMAGES).shape == (4, 3)
        return
    with pytest.raises(ValueError, match=CASES[change][1]):
        METHODS[method]().build(Backbone.from_model(base(change)), 3)


@pytest.mark.parametrize(
    "kinds", [MASKED_LAYERS, OWNED_LAYERS, HELD_LAYERS, MIXED_LAYERS, ADAPTED_LAYERS, LOW_RANK_LAYERS]
)
def test_no_layer_with_a_derived_kernel_is_quantised(kinds):
    inputs = np.ones((1, 8, 8, 3), "float32")
    for source, kind in kinds.items():
        size = {"units": 2} if source is keras.layers.Dense else {"kernel_size": 3}
        size |= {} if source in (keras.layers.Dense, keras.layers.DepthwiseConv2D) else {"filters": 2}
        # From the start, by its policy, and by its policy when it is built.
        for mode in MODES:
            layer = kind(**size, dtype=keras.dtype_policies.get(f"{mode}_from_float32"))
            with pytest.raises(ValueError, match=rf"is quantised \({mode}\)"):
                layer(inputs)
        layer = kind(**size)
        layer(inputs)
        with pytest.raises(ValueError, match="cannot be quantised"):
            layer.quantize("int8")
        with pytest.raises(ValueError, match="cannot be quantised"):
            layer.dtype_policy = "int8_from_float32"
        with pytest.raises(ValueError, match=r"is quantised \(int8\)"):
            layer(inputs)
        with pytest.raises(ValueError, match="LoRA would add"):
            kind(**size).enable_lora(2)
        if source in (keras.layers.Dense, keras.layers.Conv2D):
            with pytest.raises(ValueError, match="has LoRA enabled"):
                kind(**size, lora_rank=2)(inputs)


def test_a_masked_model_is_not_quantised():
    masked = mask(base())
    with pytest.raises(ValueError, match="'conv' .* cannot be quantised"):
        masked.quantize("int8")


@pytest.mark.parametrize("change", CASES)
def test_a_bank_takes_no_mask_for_them(change):
    """As it was made where such masks were trained, to no effect."""
    backbone, plain = Backbone.from_model(base(change)), Backbone.from_model(base())
    pack = pack_of(trained_model(plain), plain)
    pack.base_hash, pack.base_structure = backbone.hash, None
    if "int4" in change:
        # Its packed kernel has another shape.
        del pack.masks["dense/kernel"]
        assert TaskBank(backbone).add(pack).names == ["birds"]
        return
    with pytest.raises(
        MisfitError, match=f"has a mask for '{CASES[change][0]}/kernel', which 'base' would not compute"
    ):
        TaskBank(backbone).add(pack)
    del pack.masks[f"{CASES[change][0]}/kernel"]
    assert TaskBank(backbone).add(pack).names == ["birds"]


@pytest.mark.parametrize("change", CASES)
def test_they_are_not_exported(change):
    backbone = Backbone.from_model(base(change))
    for of in (Network.of, WeightLayout.of):
        with pytest.raises(ValueError, match=CASES[change][1]):
            of(backbone)


def test_what_has_no_kernel_to_mask_takes_none():
    backbone = Backbone.from_model(base())
    pack = pack_of(trained_model(backbone), backbone)
    pack.masks["norm/gamma"] = type(pack.masks["conv/kernel"])((4,), np.full((1, 1), 15, np.uint8))
    with pytest.raises(MisfitError, match="has a mask for 'norm/gamma', which 'base' would not compute with"):
        TaskBank(backbone).add(pack)


@pytest.mark.parametrize("change", CASES)
def test_a_copy_of_a_network_computes_the_same(change):
    model = base(change)
    np.testing.assert_array_equal(copy_of_base(model)(IMAGES), model(IMAGES))
