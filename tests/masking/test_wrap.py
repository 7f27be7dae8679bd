"""From networks to masked networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, model_hash, named_variables
from piggyback_tf.masking import MaskConfig, mask, masked_weights, read_masks, share
from piggyback_tf.methods import METHODS
from piggyback_tf.methods.parts.owned_weights import owned_weights


def _nested_model():
    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Conv2D(4, 1), keras.layers.ReLU()], name="inner")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(3, 3, strides=2, padding="same")(inputs)
    x = keras.layers.BatchNormalization(momentum=0.99)(x)
    x = inner(x) + 1.0
    x = keras.layers.DepthwiseConv2D(3)(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="fc")(x), name="net")


@pytest.fixture(name="base")
def _base():
    keras.utils.set_random_seed(0)
    return _nested_model()


IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")


def test_a_layer_inside_and_outside_of_a_nested_model_has_one_mask():
    inputs, inside = keras.Input((8, 8, 3)), keras.Input((8, 8, 4))
    shared = keras.layers.Conv2D(4, 3, padding="same", name="shared")
    block = keras.Model(inside, keras.layers.ReLU()(shared(inside)), name="block")
    x = block(shared(keras.layers.Conv2D(4, 1, name="first")(inputs)))
    net = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="net")
    kernels = [path for path in named_variables(net) if path.endswith("kernel")]
    assert len(kernels) == 2
    assert list(read_masks(mask(net))) == kernels
    assert list(owned_weights(METHODS["packnet"]().feature_model(Backbone.from_model(net), 0))) == kernels


def test_masked_model_starts_as_the_base_and_shares_its_variables(base):
    flags = {path: v.trainable for path, v in named_variables(base).items()}
    digest = model_hash(base)
    masked = mask(base)
    assert np.array_equal(base(IMAGES), masked(IMAGES))
    own, shared = named_variables(masked), named_variables(base)
    assert [path for path in own if "mask_real" not in path] == list(shared)
    assert all(own[path].value is variable.value for path, variable in shared.items())
    assert {path: v.trainable for path, v in named_variables(base).items()} == flags
    assert model_hash(base) == digest
    assert base.get_layer("fc").output is not None  # One node only: the base's layers are in no other graph.


def test_only_masks_are_trainable_even_when_all_is_set_trainable(base):
    masked = mask(base)
    for value in (True, False, True):
        masked.trainable = value
    assert {v.name for v in masked.trainable_variables} == {"mask_real"}
    assert len(masked.trainable_variables) == 4
    assert all(v.trainable for v in base.trainable_variables)


# Of layers that refused their weights Keras says, besides, that its own lists of them were not loaded.
@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning:keras")
def test_the_base_cannot_be_written_through_the_masked_model(base, tmp_path):
    masked = mask(base)
    with pytest.raises(ValueError, match="frozen base"):
        masked.get_layer("fc").bias.assign(np.ones(5))
    masked.save_weights(tmp_path / "masked.weights.h5")
    mask_real = masked.get_layer("fc").mask_variables["kernel"]
    before = mask_real.numpy()
    mask_real.assign(np.zeros_like(before))
    # Its own weights, the base's included, can be put back; those of another base cannot.
    masked.load_weights(tmp_path / "masked.weights.h5")
    masked.set_weights(masked.get_weights())
    assert np.array_equal(mask_real, before)
    keras.utils.set_random_seed(1)
    other = mask(_nested_model())
    with pytest.raises(ValueError, match="frozen base"):
        other.load_weights(tmp_path / "masked.weights.h5")


def test_a_base_that_its_user_froze_gets_masks_that_train(base):
    base.trainable = False
    masked = mask(base)
    assert len(masked.trainable_variables) == 4
    assert base.trainable_variables == []


def test_frozen_batch_norm_runs_in_inference_mode_in_training(base):
    masked = mask(base)
    masked.trainable = True
    before = {path: v.numpy() for path, v in named_variables(base).items()}
    assert np.array_equal(masked(IMAGES, training=False), masked(IMAGES, training=False))
    masked = mask(base)
    assert np.array_equal(masked(IMAGES, training=True), masked(IMAGES, training=False))
    assert all(np.array_equal(v, before[path]) for path, v in named_variables(base).items())


def test_norm_per_task_has_variables_of_its_own_and_the_given_momentum(base):
    masked = mask(base, norm="task", norm_statistics="task", norm_momentum=0.8)
    layer = masked.get_layer("batch_normalization")
    assert layer.momentum == 0.8
    assert {v.name for v in masked.trainable_variables} == {"mask_real", "gamma", "beta"}
    masked(IMAGES, training=True)
    assert not np.array_equal(layer.moving_mean, base.layers[2].moving_mean)
    assert base.layers[2].momentum == 0.99


def test_round_trip_with_masks_that_are_not_all_ones(base, tmp_path):
    masked = mask(base)
    generator = np.random.default_rng(0)
    for weight in masked_weights(masked).values():
        weight.mask_real.assign(generator.uniform(0, 1e-2, weight.mask_real.shape).astype("float32"))
    masked.save(tmp_path / "masked.keras")
    loaded = keras.models.load_model(tmp_path / "masked.keras")
    assert np.array_equal(masked(IMAGES), loaded(IMAGES))
    one, two = read_masks(masked), read_masks(loaded)
    assert list(one) == list(two) == ["conv2d/kernel", "inner/conv2d/kernel", "depthwise_conv2d/kernel", "fc/kernel"]
    assert all(np.array_equal(one[path], two[path]) and 0 < one[path].mean() < 1 for path in one)
    assert {v.name for v in loaded.trainable_variables} == {"mask_real"}


def test_paths_do_not_depend_on_what_was_built_before(base):
    first = list(named_variables(mask(base, exclude="conv2d")))
    keras.layers.Conv2D(1, 1), keras.layers.BatchNormalization()
    assert list(named_variables(mask(_nested_model(), exclude="conv2d"))) == first


def test_layers_are_chosen_by_path_patterns(base):
    assert list(read_masks(mask(base, include="inner/*"))) == ["inner/conv2d/kernel"]
    chosen = read_masks(mask(base, include=["*conv2d", "fc"], exclude=["depthwise*"]))
    assert list(chosen) == ["conv2d/kernel", "inner/conv2d/kernel", "fc/kernel"]
    with pytest.raises(ValueError, match=r"'block7'.* the first are \['conv2d', .*'inner/conv2d'"):
        mask(base, include="block7")
    with pytest.raises(ValueError, match="matches"):
        mask(base, include="fc", exclude="fc")


def test_a_layer_kind_that_cannot_be_masked_is_named():
    inputs = keras.Input((6, 4))
    x = keras.layers.Conv1D(3, 2, name="one_d")(inputs)
    x = keras.layers.LSTM(3, name="memory")(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(x))
    with pytest.raises(ValueError, match=r"one_d \(Conv1D\), memory \(LSTM\)"):
        mask(model)
    assert list(read_masks(mask(model, exclude=["one_d", "memory"]))) == ["dense/kernel"]


def test_a_subclass_of_a_layer_is_not_taken_for_the_layer():
    class Doubled(keras.layers.Dense):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = keras.Sequential([keras.Input((3,)), Doubled(2, name="doubled"), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match=r"doubled \(Doubled\)"):
        mask(model)


def test_models_that_cannot_be_masked_say_why(base):
    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    with pytest.raises(ValueError, match="functional and sequential"):
        mask(Subclassed())
    with pytest.raises(ValueError, match="not built"):
        mask(keras.Sequential([keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match="masked already"):
        mask(mask(base))
    with pytest.raises(ValueError, match="norm"):
        mask(base, norm="train")
    with pytest.raises(ValueError, match="no batch normalisation"):
        mask(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), norm="task")


def test_a_layer_used_twice_has_one_mask():
    dense = keras.layers.Dense(4, name="twice")
    inputs = keras.Input((4,))
    masked = mask(keras.Model(inputs, dense(dense(inputs))))
    assert list(read_masks(masked)) == ["twice/kernel"]
    assert len([layer for layer in masked.layers if layer.name == "twice"]) == 1


def test_sharing_without_masks_trains_nothing(base):
    shared = share(base)
    assert np.array_equal(base(IMAGES), shared(IMAGES))
    shared.trainable = True
    assert shared.trainable_variables == []
    assert base.trainable_variables


def test_masks_learn_in_fit_and_the_base_does_not(base):
    masked = mask(base, MaskConfig(scale=6e-3))
    digest = model_hash(base)
    masked.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
    data = tf.data.Dataset.from_tensors((IMAGES, np.zeros((2, 5)))).repeat(30)
    masked.fit(data, shuffle=False, verbose=0)
    assert any((m == 0).any() for m in read_masks(masked).values())
    assert model_hash(base) == digest


def _scaled(pixels, by=127.5):
    return pixels / by - 1


@pytest.mark.parametrize(
    "layer",
    [
        lambda: keras.layers.Lambda(lambda pixels: pixels / 127.5 - 1, name="scaled", trainable=True),
        lambda: keras.layers.Lambda(_scaled, arguments={"by": 255.0}, output_shape=(8, 8, 3), dtype="float32"),
    ],
)
def test_a_lambda_of_the_network_is_kept(layer):
    pixels, layer = keras.Input((8, 8, 3)), layer()
    x = keras.layers.Conv2D(4, 3, name="conv")(layer(pixels))
    model = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(x))
    masked = mask(model)
    images = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(masked(images), model(images))
    # The base's own layer is not in two networks, and is as it was.
    assert layer not in masked.layers and layer.trainable
    weight = masked_weights(masked)["conv/kernel"]
    weight.mask_real.assign(np.full(weight.mask_real.shape, -1.0))
    np.testing.assert_array_equal(masked(images), np.zeros((2, 4)))
