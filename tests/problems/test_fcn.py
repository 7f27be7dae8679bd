"""FCN-32s, FCN-16s and FCN-8s: VGG's own dense layers as convolutions; paths, masks and the base's hash stay."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import load_backbone, model_hash, named_variables
from piggyback_tf.data import TaskData
from piggyback_tf.masking import MaskConfig, mask, masked_weights
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import HeadSpec, HeadStart, add_head, network_for, read_spec
from piggyback_tf.problems.heads.fcn import enlarged
from piggyback_tf.settings.methods.base import PIXEL_HEADS
from piggyback_tf.surgery import for_image_shape
from piggyback_tf.training import InputConfig, TrainConfig, train_task
from tests.problems.narrow_vgg import narrow_vgg
from tests.training.test_segments import Rectangles

KINDS = ("fcn32", "fcn16", "fcn8")
SHAPE = (64, 128)


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return narrow_vgg()


@pytest.fixture(scope="module", name="masked")
def _masked(backbone):
    """A function of a head and a size of images that returns a task's model, which no test changes."""
    make = functools.cache(functools.partial(masked_model, backbone))
    return lambda kind, shape=SHAPE: make(kind, shape)


def images_of(shape, count=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape, 3)).astype(np.float32)


def masked_model(backbone, kind, shape=SHAPE, seed=0):
    """Returns a task's model as after a training, with zeros in all masks."""
    spec = HeadSpec(kind, 5, 0, shape)
    network, endpoints = network_for(backbone, spec)
    model = add_head(mask(network.model, MaskConfig()), spec, HeadStart(init="glorot", seed=seed), endpoints)
    rng = np.random.default_rng(seed)
    for weight in masked_weights(model).values():
        weight.mask_real.assign(rng.uniform(0.0, 0.03, weight.mask_real.shape))
    return model


def pack_of(model, backbone, shape=SHAPE):
    return TaskPack.from_model(
        model,
        task="roads",
        class_names=["road", "tree", "car", "sky", "house"],
        backbone=backbone,
        method="piggyback",
        eval_augment=f"resize({shape[0]},{shape[1]})",
        problem="map",
    )


def test_dense_layers_slide_over_the_feature_map(backbone):
    # One place sees a whole map of 3x3 in the middle of the larger one: what the base computes of those images.
    images = images_of((96, 96))
    wide = for_image_shape(backbone.model, (96, 96), slide=True)
    assert wide.output_shape == (None, 3, 3, 10)
    expected = backbone.model(images, training=False).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(wide(images, training=False).numpy()[:, 1, 1], expected, rtol=1e-5, atol=1e-5)


def test_they_are_convolutions_with_the_same_kernels(backbone):
    shape = (128, 160)
    wide = for_image_shape(backbone.model, shape, slide=True)
    features = for_image_shape(
        keras.Model(backbone.model.input, backbone.model.get_layer("block5_pool").output), shape
    )(images_of(shape), training=False)
    kernels = {path: variable.value for path, variable in named_variables(backbone.model).items()}
    first = tf.nn.conv2d(features, tf.reshape(kernels["fc1/kernel"], (3, 3, 8, 12)), 1, "SAME") + kernels["fc1/bias"]
    second = tf.nn.conv2d(tf.nn.relu(first), kernels["fc2/kernel"][None, None], 1, "VALID") + kernels["fc2/bias"]
    found = wide(images_of(shape), training=False).numpy()
    assert found.shape == (2, 4, 5, 10)
    np.testing.assert_allclose(found, tf.nn.relu(second).numpy(), rtol=1e-4, atol=1e-5)


def test_paths_and_hash_are_the_bases(backbone):
    wide = for_image_shape(backbone.model, SHAPE, slide=True)
    first, second = named_variables(backbone.model), named_variables(wide)
    assert first.keys() == second.keys() and model_hash(wide) == backbone.hash
    assert all(second[path].value is first[path].value for path in first)
    assert second["fc1/kernel"].shape == (3 * 3 * 8, 12)


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_scores_are_enlarged_by_the_kernel_of_the_paper(factor):
    # As `upsample_filt` and `interp` in surgery.py of the paper's code: a kernel for each class on its own.
    scores = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    size = 2 * factor
    grid = np.ogrid[:size, :size]
    centre = factor - 0.5
    one = (1 - abs(grid[0] - centre) / factor) * (1 - abs(grid[1] - centre) / factor)
    kernel = np.zeros((size, size, 4, 4), np.float32)
    kernel[:, :, range(4), range(4)] = one[..., None]
    expected = tf.nn.conv2d_transpose(scores, kernel, (2, 3 * factor, 5 * factor, 4), factor, "SAME").numpy()
    inputs = keras.Input((3, 5, 4))
    found = keras.Model(inputs, enlarged(inputs, factor, "large"))(scores).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    # Inside it is bilinear interpolation.
    resized = tf.image.resize(scores, (3 * factor, 5 * factor), "bilinear").numpy()
    inside = slice(factor // 2, -(factor // 2))
    np.testing.assert_allclose(found[:, inside, inside], resized[:, inside, inside], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "numbers"), [("fcn32", 55), ("fcn16", 55 + 45), ("fcn8", 55 + 45 + 35)])
def test_a_head_is_its_scores_alone(backbone, masked, kind, numbers):
    model = masked(kind)
    assert model.output_shape == (None, *SHAPE, 5) and model.output.dtype == "float32"
    assert read_spec(model) == HeadSpec(kind, 5, 0, SHAPE)
    own = {path: v for path, v in named_variables(model).items() if path.startswith("head/")}
    assert sum(int(np.prod(v.shape)) for v in own.values()) == numbers
    pack = pack_of(model, backbone)
    assert sum(value.size for value in pack.head.values()) == numbers
    assert list(pack.masks) == [path for path in named_variables(backbone.model) if path.endswith("/kernel")]
    assert pack.masks["fc1/kernel"].shape == (72, 12) and pack.base_hash == backbone.hash


@pytest.mark.parametrize("kind", KINDS)
def test_skips_are_added_as_in_the_paper(masked, kind):
    model = masked(kind)
    images = images_of(SHAPE)
    names = ["block3_pool", "block4_pool", "fc2_dropout"]
    maps = keras.Model(model.input, [model.get_layer(name).output for name in names])(images, training=False)
    own = {
        path.removeprefix("head/"): v.value for path, v in named_variables(model).items() if path.startswith("head/")
    }

    def scores(features, name):
        return tf.nn.conv2d(features, own[f"{name}/kernel"], 1, "VALID") + own[f"{name}/bias"]

    def interpolated(x, factor):
        inputs = keras.Input(x.shape[1:])
        return keras.Model(inputs, enlarged(inputs, factor, "large"))(x)

    found, stride = scores(maps[2], "logits"), 32
    if kind != "fcn32":
        found, stride = interpolated(found, 2) + scores(0.01 * maps[1], "block4_pool_logits"), 16
    if kind == "fcn8":
        found, stride = interpolated(found, 2) + scores(0.0001 * maps[0], "block3_pool_logits"), 8
    np.testing.assert_allclose(
        model(images, training=False).numpy(), interpolated(found, stride).numpy(), rtol=1e-4, atol=1e-5
    )


def test_masks_get_the_gradient_of_the_convolutions(masked):
    """That of `mask_real` is dE/dW' * W, with dE/dW' of a convolution `[H, W, C, F]`."""
    model = masked("fcn32")
    images, target = images_of(SHAPE), tf.random.stateless_normal((2, *SHAPE, 5), (1, 2))
    weights = masked_weights(model)
    variables = {path: variable.value for path, variable in named_variables(model).items()}
    paths = ["fc1/kernel", "fc2/kernel", "block5_conv3/kernel", "block1_conv1/kernel"]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images, training=False) * target)
    found = dict(zip(paths, tape.gradient(loss, [weights[path].mask_real.value for path in paths]), strict=True))
    assert all(np.abs(gradient.numpy()).max() > 0 for gradient in found.values())

    features = keras.Model(model.input, model.get_layer("block5_pool").output)(images, training=False)
    kept = {path: variables[path] * weights[path].read() for path in paths[:2]}
    kernels = [tf.Variable(tf.reshape(kept["fc1/kernel"], (3, 3, 8, 12))), tf.Variable(kept["fc2/kernel"][None, None])]
    inputs = keras.Input((2, 4, 5))
    interpolated = keras.Model(inputs, enlarged(inputs, 32, "large"))
    with tf.GradientTape() as tape:
        x = tf.nn.relu(tf.nn.conv2d(features, kernels[0], 1, "SAME") + variables["fc1/bias"])
        x = tf.nn.relu(tf.nn.conv2d(x, kernels[1], 1, "VALID") + variables["fc2/bias"])
        x = tf.nn.conv2d(x, variables["head/logits/kernel"], 1, "VALID") + variables["head/logits/bias"]
        again = tf.reduce_sum(interpolated(x) * target)
    assert float(again) == pytest.approx(float(loss), rel=1e-4)
    for path, gradient in zip(paths[:2], tape.gradient(again, kernels), strict=True):
        expected = tf.reshape(gradient, variables[path].shape) * variables[path]
        np.testing.assert_allclose(found[path], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SHAPE, (40, 70)])
def test_a_bank_gives_the_label_maps_of_the_trained_model(backbone, masked, kind, shape, tmp_path):
    model = masked(kind, shape)
    file = tmp_path / "roads.task.safetensors"
    pack_of(model, backbone, shape).save(file)
    images = images_of(shape, 3).astype(np.uint8)
    labels = TaskBank(backbone).add(file).predict(images, task="roads")
    expected = model.predict(images, verbose=0).argmax(axis=-1)
    assert labels.shape == (3, *shape) and len(np.unique(labels)) > 1
    assert np.array_equal(labels, expected)


def test_it_goes_on_as_a_plain_keras_model(backbone, masked, tmp_path):
    model = masked("fcn8", (40, 70))
    plain = TaskBank(backbone).add(pack_of(model, backbone, (40, 70))).to_keras("roads")
    plain.save(tmp_path / "roads.keras")
    assert not any(type(layer).__module__.startswith("piggyback_tf") for layer in plain._flatten_layers())
    images = images_of((40, 70))
    probabilities = keras.models.load_model(tmp_path / "roads.keras").predict(images, verbose=0)
    expected = tf.nn.softmax(model.predict(images, verbose=0)).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["piggyback", "classifier_only", "finetune"])
def test_methods_train_it(backbone, method):
    data = TaskData(
        "rectangles", "rectangles", ("ground", "rectangle"), Rectangles(0, 4), Rectangles(12, 2), None, target="map"
    )
    kind = METHODS[method]
    inputs = InputConfig(augment_eval="resize(40,56)", augment_train="resize(40,56)")
    before = backbone.hash
    learner = kind(kind.Config(head="fcn8"))
    trained = train_task(learner, backbone, data, TrainConfig(epochs=1, batch_size=2, head_lr=1e-2), inputs)
    assert read_spec(trained.model) == HeadSpec("fcn8", 2, 0, (40, 56)) and backbone.hash == before
    if kind.makes_pack:
        return
    images = images_of((40, 56))
    memory = learner.remember(trained.model, backbone, "rectangles", ())
    again = kind(kind.Config(head="fcn8"), memory=memory).recall(backbone, "rectangles")
    assert np.array_equal(again(images).numpy(), trained.model(images, training=False).numpy())


def test_other_networks_say_what_they_lack():
    for name in ("shapesnet",):
        with pytest.raises(ValueError, match="has no fully connected layers that could be seen as convolutions"):
            network_for(load_backbone(name), HeadSpec("fcn8", 2, 0, SHAPE))
    images = keras.Input((64, 64, 3))
    x = keras.layers.Conv2D(4, 3, 2, padding="same", name="block3_pool")(images)
    x = keras.layers.Dense(4, name="fc")(keras.layers.Flatten(name="flatten")(x))
    shallow = narrow_vgg().from_model(keras.Model(images, x, name="shallow"), image_size=64)
    with pytest.raises(ValueError, match="'fcn16' builds on block4_pool, fc with strides 16, 32.* 'shallow' has not"):
        network_for(shallow, HeadSpec("fcn16", 2, 0, SHAPE))


def test_settings_name_all_heads_for_pixels():
    from piggyback_tf.problems import HEADS

    assert sorted(PIXEL_HEADS) == sorted(set(HEADS.names()) - {"dense", "fcos"})


@pytest.mark.slow
def test_the_real_vgg16():
    backbone = load_backbone("vgg16", weights="random")
    shape = (224, 256)
    images = images_of(shape, 1)
    wide = for_image_shape(backbone.model, shape, slide=True)
    middle = wide(images, training=False).numpy()
    assert middle.shape == (1, 7, 8, 4096)
    for column in (0, 1):
        part = backbone.model(images[:, :, 32 * column : 32 * column + 224], training=False).numpy()
        # At the cut the image goes on: the places of the two are the same only in the middle of the map.
        assert np.corrcoef(part[0], middle[0, 3, 3 + column])[0, 1] > 0.9
    square = for_image_shape(backbone.model, (224, 224), slide=True)
    np.testing.assert_allclose(
        square(images[:, :, :224], training=False).numpy()[:, 3, 3],
        backbone.model(images[:, :, :224], training=False).numpy(),
        rtol=1e-3,
        atol=1e-4,
    )
    model = masked_model(backbone, "fcn8", shape)
    pack = pack_of(model, backbone, shape)
    assert pack.masks["fc1/kernel"].shape == (25088, 4096) and pack.base_hash == backbone.hash
    labels = TaskBank(backbone).add(pack).predict(images, task="roads")
    assert np.array_equal(labels, model.predict(images, verbose=0).argmax(axis=-1))
