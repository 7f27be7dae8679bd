"""Affine masks: `W' = k0 W + k1 + (k2 + k3 W) m`, from the layer to the pack."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import named_layers
from piggyback_tf.masking import MaskConfig, mask, masked_weights
from piggyback_tf.masking.threshold import affine_kernel, promise_factor
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.settings.methods import CONFIGS
from piggyback_tf.settings.records import write_record
from tests.methods.toy import SIZE, toy_backbone

KERNEL = np.random.default_rng(0).standard_normal((5, 4)).astype("float32")
REAL = np.random.default_rng(1).uniform(-0.02, 0.02, (5, 4)).astype("float32")
NUMBERS = np.array([0.2, -0.1, 0.3, 0.7], "float32")


@pytest.mark.parametrize("scaling", ["none", "average", "individual"])
@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_values_and_gradients(kind, scaling):
    real, numbers = tf.constant(REAL), tf.constant(NUMBERS)
    upstream = np.random.default_rng(2).standard_normal(KERNEL.shape).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch([real, numbers])
        made = affine_kernel(tf.constant(KERNEL), real, numbers, threshold=5e-3, kind=kind, gradient_scaling=scaling)
        loss = tf.reduce_sum(made * upstream)
    of_mask, of_numbers = (gradient.numpy() for gradient in tape.gradient(loss, [real, numbers]))
    m = (REAL >= 5e-3).astype("float32") - (REAL <= -5e-3) * np.float32(kind == "ternary")
    k0, k1, k2, k3 = NUMBERS
    np.testing.assert_allclose(made, k0 * KERNEL + k1 + (k2 + k3 * KERNEL) * m, rtol=1e-5, atol=1e-6)
    # What a flip promises is |dE/dm|, whatever the gradient was divided by.
    promise = of_mask * promise_factor(tf.constant(KERNEL), scaling)
    np.testing.assert_allclose(promise, upstream * (k2 + k3 * KERNEL), rtol=1e-5, atol=1e-6)
    # Those of the numbers are those of differences.
    expected = [(upstream * each).sum() for each in (KERNEL, np.ones_like(KERNEL), m, KERNEL * m)]
    np.testing.assert_allclose(of_numbers, expected, rtol=1e-4, atol=1e-5)


def _model(backbone, affine="layer", **settings):
    model = METHODS["piggyback"](CONFIGS["piggyback"](mask_affine=affine, **settings)).build(backbone, 3)
    rng = np.random.default_rng(3)
    for weight in masked_weights(model).values():
        weight.mask_real.assign(rng.uniform(-0.005, 0.03, weight.mask_real.shape))
    model.get_layer("head").kernel.assign(rng.standard_normal(model.get_layer("head").kernel.shape))
    return model


IMAGES = np.random.default_rng(4).uniform(0, 255, (4, SIZE, SIZE, 3)).astype("float32")


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


def test_it_starts_as_a_mask_alone_and_has_a_gradient_for_all(backbone):
    affine, plain = _model(backbone), _model(backbone, "none")
    np.testing.assert_array_equal(affine(IMAGES), plain(IMAGES))
    assert not any("affine" in variable.path for variable in plain.variables)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(affine(IMAGES, training=True)))
    found = {
        v.path: g
        for v, g in zip(affine.trainable_variables, tape.gradient(loss, affine.trainable_weights), strict=True)
    }
    numbers = {path: gradient.numpy() for path, gradient in found.items() if "affine" in path}
    assert len(numbers) == len(masked_weights(affine))
    # k0 and k1 change the last kernel's features, whatever its mask.
    assert all(gradient is not None and np.abs(gradient).max() > 0 for gradient in numbers.values())
    groups = METHODS["piggyback"](CONFIGS["piggyback"](mask_affine="layer")).groups(affine)
    assert len(groups["norm"]) == len(numbers) and len(groups["mask"]) == len(numbers)


@pytest.mark.parametrize("kind", ["binary", "ternary"])
def test_a_pack_and_a_bank_answer_as_the_model(backbone, kind, tmp_path):
    model = _model(backbone, mask_kind=kind)
    rng = np.random.default_rng(5)
    for _, layer in named_layers(model):
        for variable in getattr(layer, "affine_variables", {}).values():
            variable.assign(0.3 * rng.standard_normal(4))
    pack = TaskPack.from_model(
        model, task="affine", class_names=["a", "b", "c"], backbone=backbone, method="piggyback",
        eval_augment=f"resize({SIZE},{SIZE})",
    )  # fmt: skip
    assert pack.saved_version == 6
    assert list(pack.parts) == [f"affine/{path}" for path in pack.masks]
    pack.save(tmp_path / "pack")
    bank = TaskBank(backbone).add(tmp_path / "pack")
    np.testing.assert_allclose(bank.predict(IMAGES, "affine"), tf.nn.softmax(model(IMAGES)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(bank.to_keras("affine")(IMAGES), bank.predict(IMAGES, "affine"), rtol=0, atol=1e-6)
    plain = TaskBank(backbone).add(dataclasses.replace(pack, arrays=dataclasses.replace(pack.arrays, parts={})))
    assert np.abs(plain.predict(IMAGES, "affine") - bank.predict(IMAGES, "affine")).max() > 1e-3
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(IMAGES), model(IMAGES))


def test_numbers_of_a_layer_are_in_units_of_its_weights(backbone):
    """So that a kernel of small weights gets small sums at the same rate."""
    model = mask(backbone.model, MaskConfig(affine="layer"))
    weight = next(iter(masked_weights(model).values()))
    weight.layer.affine_variables["kernel"].assign([0.5, 1.0, -2.0, 0.25])
    unit = np.abs(weight.layer.frozen_weight("kernel").numpy()).mean()
    expected = np.array([0.5, unit, -2 * unit, 1.25], "float32")
    np.testing.assert_allclose(weight.layer.learned_parts()["affine/kernel"], expected, rtol=1e-6)


def test_without_the_option_records_are_those_of_before():
    fields = {field.name: field for field in dataclasses.fields(CONFIGS["piggyback"])}

    def recorded(**settings):
        return write_record(vars(CONFIGS["piggyback"](**settings)), fields)

    assert "mask_affine" not in recorded()
    assert recorded(mask_affine="layer")["mask_affine"] == "layer"
    with pytest.raises(ValueError, match="mask_affine.*'channel'"):
        CONFIGS["piggyback"](mask_affine="channel")
    with pytest.raises(ValueError, match="no masks to start from where they are affine"):
        CONFIGS["piggyback"](mask_affine="layer", init_from="auto")
