"""LoRA: what is added to which kernels, how it starts, what it costs, and that layers come back from files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, load_backbone, named_layers, named_variables
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.lora import LOW_RANK_LAYERS, LoRAConfig, LowRankKernel
from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.surgery import BaseVariable
from tests.methods.learning import noise_images
from tests.packs.helpers import small_backbone

LoRA = METHODS["lora"]


def _pack(model, backbone):
    return TaskPack.from_model(
        model, task="t", class_names=["a", "b", "c"], backbone=backbone, method="lora", eval_augment=""
    )


def _odd():
    """Returns a backbone with a kernel of every kind, a grouped one, and one that two places share."""
    images = keras.Input((9, 9, 3))
    twice = keras.layers.Conv2D(6, 3, padding="same", activation="tanh", name="twice")
    x = keras.layers.Conv2D(6, 1, use_bias=False, name="one")(images)
    x = twice(twice(x))
    x = keras.layers.Conv2D(6, 3, groups=2, padding="same", dilation_rate=2, name="grouped")(x)
    x = keras.layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="depthwise")(x)
    x = keras.layers.SeparableConv2D(8, 3, padding="same", name="separable")(x)
    x = keras.layers.Conv2DTranspose(7, 2, strides=2, name="transposed")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return Backbone.from_model(keras.Model(images, keras.layers.Dense(5, name="fc")(x), name="odd"))


def test_it_starts_as_the_base_bit_for_bit():
    for backbone in (small_backbone(), _odd(), load_backbone("shapesnet")):
        digest, images = backbone.hash, noise_images(backbone.image_size)
        model = LoRA().feature_model(backbone, 3)
        assert np.array_equal(model(images, training=False), backbone.model(images, training=False))
        model.trainable = True
        assert backbone.hash == digest
        own = {path.rpartition("/")[2] for path, v in named_variables(model).items() if not isinstance(v, BaseVariable)}
        assert own == {"down", "up"}


def test_which_kernels_are_changed():
    found = {path: tuple(v.shape) for path, v in named_variables(LoRA().feature_model(_odd(), 0)).items()}
    assert {path: shape for path, shape in found.items() if path.endswith(("down", "up"))} == {
        # The rank is at most the smaller side.
        "one/down": (1, 1, 3, 3),
        "one/up": (3, 6),
        "twice/down": (3, 3, 6, 4),
        "twice/up": (4, 6),
        "grouped/down": (3, 3, 3, 4),
        "grouped/up": (4, 6),
        "separable/down": (1, 1, 12, 4),
        "separable/up": (4, 8),
        "transposed/down": (2, 2, 7, 4),
        "transposed/up": (4, 8),
        "fc/down": (7, 4),
        "fc/up": (4, 5),
    }


def test_a_layer_adds_what_two_convolutions_give():
    """As in PEFT: one with r filters of the same size, and a 1x1 convolution of what it gives, times alpha / r."""
    rng, images = np.random.default_rng(0), noise_images(9) / 255
    layer = LOW_RANK_LAYERS[keras.layers.Conv2D](6, 3, strides=2, factor_rank=2, factor_alpha=3.0, name="conv")
    layer.build(images.shape)
    for variable in layer.weights:
        variable.assign(rng.standard_normal(variable.shape))
    kernel, bias, down, up = layer._kernel, layer.bias, layer._down, layer._up
    first = tf.nn.conv2d(images, down.value, 2, "VALID")
    expected = (
        tf.nn.conv2d(images, kernel.value, 2, "VALID") + bias + 1.5 * tf.nn.conv2d(first, up[None, None], 1, "VALID")
    )
    np.testing.assert_allclose(layer(images), expected, rtol=1e-4, atol=1e-5)
    assert {v.path for v in layer.trainable_weights} == {"conv/down", "conv/up"}


def test_both_factors_get_a_gradient_and_the_kernel_none():
    model = LoRA().build(_odd(), 3)
    for path, variable in named_variables(model).items():
        if path.endswith("/up") or path == "head/kernel":
            variable.assign(np.random.default_rng(0).standard_normal(variable.shape))
    with tf.GradientTape() as tape:
        tape.watch([v.value for v in model.variables])
        loss = tf.reduce_sum(tf.square(model(noise_images(9), training=True)))
    trained = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(loss, trained)
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    assert {v.path.rpartition("/")[2] for v in model.trainable_variables} == {"down", "up", "kernel", "bias"}
    assert not [v.path for v in model.trainable_variables if v.path.endswith("kernel") and "head" not in v.path]


def test_a_layer_comes_back_from_a_file_with_its_factors(tmp_path):
    """Keras' own LoRA is added to the kernel when it is saved, and its factors are 0 when it is loaded."""
    rng, images = np.random.default_rng(0), noise_images(8)
    model = LoRA(LoRAConfig(lora_rank=2, lora_alpha=5.0)).build(small_backbone(), 3)
    for variable in model.trainable_variables:
        variable.assign(rng.standard_normal(variable.shape))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(images, training=False), model(images, training=False))
    layers = [layer for _, layer in named_layers(loaded) if isinstance(layer, LowRankKernel)]
    assert {(layer.factor_rank, layer.factor_alpha) for layer in layers} == {(2, 5.0)}
    assert all(np.abs(layer._up).max() > 0 for layer in layers)


@pytest.mark.parametrize("alpha", [4.0, 7.0])
def test_a_pack_has_the_factors_with_alpha_in_them(alpha):
    rng, backbone = np.random.default_rng(0), _odd()
    model = LoRA(LoRAConfig(lora_alpha=alpha)).build(backbone, 3)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.standard_normal(variable.shape))
    pack, values = _pack(model, backbone), named_variables(model)
    assert not pack.masks and not pack.norm and pack.format_version == 5
    assert {name.partition("/")[0] for name in pack.parts} == {"down", "up"}
    np.testing.assert_array_equal(pack.parts["down/twice/kernel"], values["twice/down"])
    np.testing.assert_array_equal(pack.parts["up/twice/kernel"], values["twice/up"].numpy() * np.float32(alpha / 4))
    np.testing.assert_array_equal(pack.parts["down/separable/pointwise_kernel"], values["separable/down"])


@pytest.fixture(scope="module", name="mobilenet")
def _mobilenet():
    return load_backbone("mobilenet_v2", weights="random", image_size=32)


@pytest.mark.parametrize(("rank", "kilobytes"), [(4, 148), (8, 296)])
def test_how_many_bytes_it_takes_on_mobilenet(rank, kilobytes, mobilenet):
    backbone = mobilenet
    model = LoRA(LoRAConfig(lora_rank=rank)).build(backbone, 3)
    pack = _pack(model, backbone).astype("float16")
    head = sum(2 * value.size for value in pack.head.values())
    found = sum(2 * value.size for value in pack.parts.values())
    # 34 convolutions of 1x1, and the first of all.
    assert len(pack.parts) == 2 * 35
    assert found / 1000 == pytest.approx(kilobytes, rel=0.01)
    beside = len(pack.to_bytes()) - found - head
    assert 0 < beside < 6000, "the list of weights and the description"


def test_segments_are_learned_too():
    model = LoRA().build(load_backbone("shapesnet", image_size=32), HeadSpec("fpn", 3, 8, (40, 56)))
    assert model.output_shape == (None, 40, 56, 3)
    assert set(LoRA().groups(model)) == {"adapter", "head"}


def test_settings_and_networks_that_are_refused():
    for settings, message in [
        ({"lora_rank": 0}, "lora_rank must be an integer of at least 1. Received: lora_rank=0"),
        ({"lora_rank": 1.5}, "lora_rank must be an integer of at least 1. Received: lora_rank=1.5"),
        ({"lora_alpha": 0.0}, "`lora_alpha` must be above 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            LoRAConfig(**settings)
    images = keras.Input((9, 9, 3))
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(images)
    backbone = Backbone.from_model(keras.Model(images, keras.layers.GlobalAveragePooling2D()(x), name="net"))
    with pytest.raises(ValueError, match="Backbone 'net' has no kernel that LoRA could change"):
        LoRA().build(backbone, 3)


def test_a_method_whose_layers_a_pack_cannot_hold_still_has_none():
    backbone = small_backbone()
    with pytest.raises(PackError, match="has the weight 'conv2d/adapter', which is none of the base"):
        _pack(METHODS["residual_adapters"]().build(backbone, 3), backbone)
