"""Masked layers against the Keras layers they stand for."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.masking import MaskConfig, masked_weights
from piggyback_tf.masking.layers import MASKED_LAYERS

IMAGE = (2, 8, 8, 4)
LAYERS = {
    "dense": (keras.layers.Dense, {"units": 5}, (3, 7)),
    "dense_no_bias": (keras.layers.Dense, {"units": 5, "use_bias": False, "activation": "relu"}, (3, 7)),
    "conv": (keras.layers.Conv2D, {"filters": 6, "kernel_size": 3, "padding": "same"}, IMAGE),
    "conv_strides": (keras.layers.Conv2D, {"filters": 6, "kernel_size": (3, 2), "strides": 2}, IMAGE),
    "conv_dilation": (keras.layers.Conv2D, {"filters": 6, "kernel_size": 3, "dilation_rate": 2}, IMAGE),
    "conv_groups": (keras.layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 2, "use_bias": False}, IMAGE),
    "depthwise": (keras.layers.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2, "strides": 2}, IMAGE),
    "transpose": (keras.layers.Conv2DTranspose, {"filters": 5, "kernel_size": 3, "strides": 2}, IMAGE),
    "separable": (keras.layers.SeparableConv2D, {"filters": 5, "kernel_size": 3, "padding": "same"}, IMAGE),
}


@pytest.fixture(params=LAYERS, name="pair")
def _pair(request):
    """A plain layer, the masked layer that stands for it with the same weights, and an input."""
    kind, arguments, shape = LAYERS[request.param]
    keras.utils.set_random_seed(1)
    plain = kind(**arguments, name="layer")
    masked = MASKED_LAYERS[kind].from_config(plain.get_config())
    inputs = tf.random.stateless_normal(shape, seed=(1, 2))
    plain(inputs)
    masked(inputs)
    by_name = {v.name: v for v in plain.weights}
    for variable in masked.weights:
        if variable.name in by_name:
            by_name[variable.name].assign(tf.random.stateless_normal(variable.shape, seed=(3, 4)))
            variable.assign(by_name[variable.name])
    return plain, masked, inputs


def _scatter(masked, seed=0):
    """Moves every mask to random values on both sides of the threshold."""
    generator = np.random.default_rng(seed)
    for mask_real in masked.mask_variables.values():
        mask_real.assign(generator.uniform(-2e-2, 2e-2, mask_real.shape).astype("float32"))


def test_starts_as_the_plain_layer_bit_for_bit(pair):
    plain, masked, inputs = pair
    assert np.array_equal(plain(inputs), masked(inputs))
    assert [v.name for v in masked.trainable_variables] == [v.name for v in masked.mask_variables.values()]


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_computes_with_the_kernel_times_the_mask(pair, kind):
    plain, masked, inputs = pair
    masked.mask_config = MaskConfig(kind=kind)
    _scatter(masked)
    for weight, mask in masked.masks().items():
        kernel = getattr(plain, weight)
        variable = kernel if isinstance(kernel, keras.Variable) else plain._kernel
        variable.assign(variable * mask)
        assert set(np.unique(mask)) == ({0, 1} if kind == "binary" else {-1, 0, 1})
    np.testing.assert_array_equal(plain(inputs), masked(inputs))


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_gradient_of_the_mask_is_that_of_the_masked_kernel_times_the_weights(pair, kind):
    plain, masked, inputs = pair
    masked.mask_config = MaskConfig(kind=kind)
    _scatter(masked)
    frozen = {weight: masked.frozen_weight(weight).numpy() for weight in masked.mask_variables}
    target = tf.random.stateless_normal(plain(inputs).shape, seed=(5, 6))
    # The unmasked twin has W' = W * m for its kernel.
    twins = {}
    for weight, mask in masked.masks().items():
        kernel = getattr(plain, weight)
        twins[weight] = kernel if isinstance(kernel, keras.Variable) else plain._kernel
        twins[weight].assign(frozen[weight] * mask)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(plain(inputs) - target))
    expected = tape.gradient(loss, [v.value for v in twins.values()])
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(masked(inputs) - target))
    found = tape.gradient(loss, [v.value for v in masked.mask_variables.values()])
    for weight, e, f in zip(twins, expected, found, strict=True):
        e = e.numpy() * frozen[weight]
        assert np.abs(f - e).max() <= 1e-6 * np.abs(e).max()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ("average", lambda gradient, w: gradient * w / np.abs(w).mean()),
        ("individual", lambda gradient, w: gradient * np.sign(w)),
    ],
)
def test_gradient_scaling(scaling, expected):
    layer = MASKED_LAYERS[keras.layers.Dense](3, use_bias=False, mask=MaskConfig(gradient_scaling=scaling))
    inputs = tf.random.stateless_normal((4, 5), seed=(1, 2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(inputs))
    found = tape.gradient(loss, layer.mask_variables["kernel"].value)
    kernel = layer.frozen_weight("kernel").numpy()
    gradient = np.broadcast_to(inputs.numpy().sum(0)[:, None], kernel.shape)
    np.testing.assert_allclose(found, expected(gradient, kernel), rtol=1e-5)


def test_weights_stay_bit_identical_while_masks_learn(pair):
    _, masked, inputs = pair
    frozen = [v.numpy() for v in masked.non_trainable_variables]
    before = [v.numpy() for v in masked.trainable_variables]
    model = keras.Sequential([masked])
    model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    target = np.ones(masked(inputs).shape, "float32")
    data = tf.data.Dataset.from_tensors((inputs, target)).repeat(100)
    model.fit(data, shuffle=False, verbose=0)
    for variable, value in zip(masked.non_trainable_variables, frozen, strict=True):
        assert np.array_equal(variable, value)
    assert any(not np.array_equal(v, b) for v, b in zip(masked.trainable_variables, before, strict=True))


def test_saves_and_loads_with_masks_that_are_not_all_ones(pair, tmp_path):
    _, masked, inputs = pair
    _scatter(masked)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), masked])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(model(inputs), loaded(inputs))
    for one, two in zip(masked_weights(model).values(), masked_weights(loaded).values(), strict=True):
        assert np.array_equal(one.read(), two.read())
        assert 0 < one.read().mean() < 1


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_the_mask_in_float32(policy):
    layer = MASKED_LAYERS[keras.layers.Dense](4, dtype=policy)
    inputs = tf.ones((2, 3))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(inputs), tf.float32))
    gradient = tape.gradient(loss, layer.mask_variables["kernel"].value)
    assert layer(inputs).dtype == policy.removeprefix("mixed_")
    assert gradient.dtype == tf.float32
    assert layer.mask_variables["kernel"].value.dtype == tf.float32
    # One part in 128 of the mask's values decides here, and would be lost in bfloat16's eight bits.
    layer.mask_variables["kernel"].assign(np.full((3, 4), 0.004999, "float32"))
    assert layer.masks()["kernel"].sum() == 0
    assert np.all(np.asarray(layer(inputs)) == 0)


def test_data_format_channels_first_is_kept():
    plain = keras.layers.Conv2D(3, 3, data_format="channels_first")
    masked = MASKED_LAYERS[keras.layers.Conv2D].from_config(plain.get_config())
    assert masked.data_format == "channels_first"
    assert masked.compute_output_shape((1, 4, 8, 8)) == (1, 3, 6, 6)


@pytest.mark.parametrize(("init", "low", "high"), [("constant", 1, 1), ("magnitude", 0.5, 0.9), ("uniform", 0.1, 0.4)])
def test_init_decides_how_many_weights_start_in_use(init, low, high):
    layer = MASKED_LAYERS[keras.layers.Dense](64, mask=MaskConfig(init=init))
    layer.build((None, 64))
    assert low <= layer.masks()["kernel"].mean() <= high


def test_uniform_init_depends_on_seed_and_place_only():
    def values(seed, path):
        layer = MASKED_LAYERS[keras.layers.Dense](8, mask=MaskConfig(init="uniform", seed=seed))
        layer.build((None, 8))
        layer.initialise_masks(path)
        return layer.mask_variables["kernel"].numpy()

    assert np.array_equal(values(0, "a"), values(0, "a"))
    assert not np.array_equal(values(0, "a"), values(1, "a"))
    assert not np.array_equal(values(0, "a"), values(0, "b"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "binry"}, "binary"),
        ({"init": "zeros"}, "constant"),
        ({"gradient_scaling": "mean"}, "average"),
        ({"kind": "ternary", "threshold": 0.0}, "above 0"),
        ({"scale": 0.0, "threshold": -1.0}, "above 0"),
        ({"scale": 1e-3}, "every weight masked"),
    ],
)
def test_wrong_settings_name_the_right_ones(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskConfig(**arguments)


def test_lora_and_quantisation_are_refused():
    layer = MASKED_LAYERS[keras.layers.Dense](4)
    layer.build((None, 4))
    with pytest.raises(ValueError, match="LoRA"):
        layer.enable_lora(2)
    with pytest.raises(ValueError, match="quantised"):
        layer.quantize("int8")
