"""Progressive neural networks: columns, laterals between them, and what of them is kept."""

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, load_backbone, named_layers, named_variables
from piggyback_tf.methods import METHODS, Memory
from piggyback_tf.methods.pnn import EARLIER_NAME, PNNConfig
from piggyback_tf.surgery import BaseVariable
from tests.methods.learning import answers, check_old_tasks_stay, learn, noise_images
from tests.methods.toy import SIZE, toy_backbone

PNN = METHODS["pnn"]
layers = keras.layers


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return toy_backbone()


@pytest.fixture(scope="module", name="learned")
def _learned(backbone, tmp_path_factory):
    """Returns the memory of two tasks."""
    file, memory = tmp_path_factory.mktemp("pnn") / "memory", Memory()
    for task in ("one", "two"):
        memory, _ = learn(PNN(None, memory), backbone, task, file)
    return memory


def strided_backbone(dropout=0.0):
    """Returns a backbone with strided layers of several kinds, two of them at one boundary."""
    keras.utils.set_random_seed(0)
    images = keras.Input((16, 16, 3))
    x = layers.MaxPooling2D(2, name="images_pool")(images)  # No boundary: all columns see the same images.
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="stem")(x)
    shortcut = layers.Conv2D(6, 1, strides=2, name="shortcut")(x)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="relu", name="down")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="add")([x, shortcut]))
    x = layers.Dropout(dropout, name="dropout")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="same")(x)
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(x)
    return Backbone.from_model(keras.Model(images, layers.GlobalMaxPooling2D(name="pool")(x), name="strided"))


def test_old_tasks_answer_bit_for_bit_the_same(tmp_path):
    memory = check_old_tasks_stay(PNN, strided_backbone(), tmp_path / "memory")
    assert not memory.shared
    assert not memory.learning


@pytest.mark.parametrize("norm", ["frozen", "task"])
def test_the_first_column_is_a_finetuned_network(backbone, norm, tmp_path):
    found = {}
    for name in ("pnn", "finetune"):
        method = METHODS[name](METHODS[name].Config(norm=norm))
        memory, found[name] = learn(method, backbone, "one", tmp_path / name)
        assert set(memory.of("one")) == {*named_variables(backbone.model), "head/kernel", "head/bias"}
    assert np.array_equal(found["pnn"], found["finetune"])


def test_laterals_stand_at_strided_layers_and_features(tmp_path):
    backbone = strided_backbone()
    memory, _ = learn(PNN(), backbone, "one", tmp_path / "memory")
    own = learn(PNN(None, memory), backbone, "two", tmp_path / "memory")[0].of("two")
    own = {path: array.shape for path, array in own.items() if path.startswith("lateral")}
    assert own == {
        **{f"lateral_{number}_scale_1/scale": () for number in (1, 2, 3)},
        "lateral_1/kernel": (1, 1, 5, 5),
        "lateral_1/bias": (5,),
        "lateral_2/kernel": (1, 1, 6, 6),
        "lateral_2/bias": (6,),
        "lateral_3/kernel": (6, 6),
        "lateral_3/bias": (6,),
    }


def test_a_lateral_is_a_scaled_mix_behind_a_relu(backbone, learned):
    model = PNN(None, learned).build(backbone, 3, seed=4)
    images = noise_images(SIZE)
    earlier = keras.Model(model.input, model.get_layer(EARLIER_NAME)(model.input))(images)
    assert len(earlier) == 2  # The toy network has one boundary, its features, and there are two columns.
    own = keras.Model(model.input, model.get_layer("dense").output)(images)
    scales = [0.5, 2.0]
    for number, scale in enumerate(scales, start=1):
        assert float(model.get_layer(f"lateral_1_scale_{number}").scale) == pytest.approx(0.1)
        model.get_layer(f"lateral_1_scale_{number}").scale.assign(scale)
    mix = model.get_layer("lateral_1")
    mix.bias.assign(np.linspace(-1, 1, 10))
    joined = np.concatenate([scale * np.asarray(h) for scale, h in zip(scales, earlier, strict=True)], axis=1)
    expected = own + np.maximum(joined @ mix.kernel.numpy() + mix.bias.numpy(), 0)
    assert np.abs(expected - own).max() > 0.1
    np.testing.assert_allclose(
        keras.Model(model.input, model.get_layer("lateral_1_add").output)(images), expected, 1e-4
    )


def test_earlier_columns_compute_what_they_did_and_are_not_stored_twice(backbone, learned):
    model = PNN(None, learned).build(backbone, 3)
    frozen = {path: v for path, v in named_variables(model).items() if path.startswith(EARLIER_NAME)}
    assert {id(v) for v in model.trainable_variables}.isdisjoint(id(v) for v in frozen.values())
    assert all(isinstance(variable, BaseVariable) for variable in frozen.values())
    for task, prefix in (("two", EARLIER_NAME), ("one", f"{EARLIER_NAME}/{EARLIER_NAME}")):
        for path, array in learned.of(task).items():
            if not path.startswith("head/"):
                assert np.array_equal(frozen.pop(f"{prefix}/{path}"), array)
    assert not frozen
    own = PNN(None, learned).remember(model, backbone, "three", []).of("three")
    extra = {path for path in own if path not in learned.of("two")}
    assert extra == {"lateral_1_scale_2/scale"}
    model.trainable = True
    with pytest.raises(ValueError, match="belongs to a frozen base"):
        model.get_layer(EARLIER_NAME).get_layer("dense").bias.assign(np.ones(10))


def test_an_early_task_needs_no_later_one(backbone, learned):
    alone = Memory({"one": learned.of("one")})
    assert np.array_equal(
        answers(PNN(None, alone).recall(backbone, "one")), answers(PNN(None, learned).recall(backbone, "one"))
    )
    network = PNN(None, learned).recall(backbone, "one")
    assert not any("lateral" in path or EARLIER_NAME in path for path, _ in named_layers(network))


def test_columns_are_saved_and_loaded_with_the_network(backbone, learned, tmp_path):
    network = PNN(None, learned).recall(backbone, "two")
    network.save(tmp_path / "network.keras")
    assert np.array_equal(answers(keras.models.load_model(tmp_path / "network.keras")), answers(network))


def test_dropout_of_earlier_columns_is_no_noise(tmp_path):
    backbone = strided_backbone(dropout=0.9)
    memory, _ = learn(PNN(), backbone, "one", tmp_path / "memory")
    model = PNN(PNNConfig(head_init="glorot"), memory).build(backbone, 3)
    images, earlier = noise_images(16), model.get_layer(EARLIER_NAME)
    for one, two in zip(earlier(images, training=True), earlier(images, training=False), strict=True):
        assert np.array_equal(one, two)
    assert not np.array_equal(model(images, training=True), model(images, training=True))


def test_groups_and_seed(backbone, learned):
    model = PNN(None, learned).build(backbone, 3)
    groups = {group: {v.path for v in members} for group, members in PNN().groups(model).items()}
    assert groups["adapter"] == {
        *(f"lateral_1/{part}" for part in ("kernel", "bias")),
        *(f"lateral_1_scale_{number}/scale" for number in (1, 2)),
    }
    kernels = {"first_conv", "second_conv", "third_conv", "dense"}
    assert groups["weights"] == {*(f"{path}/kernel" for path in kernels), "third_conv/bias", "dense/bias"}
    assert np.array_equal(model.get_layer("dense").kernel, backbone.model.get_layer("dense").kernel)
    first, again, other = (
        PNN(None, learned).feature_model(backbone, seed).get_layer("lateral_1").kernel.numpy() for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "boundaries"), [("vgg16_notop", 6), ("resnet50", 5), ("mobilenet_v2", 5), ("shapesnet", 3)]
)
def test_networks(name, boundaries):
    backbone = load_backbone(name, weights="random", image_size=32)
    memory = PNN().remember(PNN().build(backbone, 2), backbone, "one", [])
    model = PNN(None, memory).build(backbone, 2)
    assert len(model.get_layer(EARLIER_NAME).outputs) == boundaries
    assert np.isfinite(answers(model)).all()


def test_a_nested_network_is_refused():
    images = keras.Input((8, 8, 3))
    inner = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, strides=2)], name="inner")
    model = keras.Model(images, layers.GlobalMaxPooling2D()(inner(images)), name="outer")
    with pytest.raises(ValueError, match="'inner' .Sequential. is nested in it"):
        PNN().build(Backbone.from_model(model), 2)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="`pnn_scale` must not be 0"):
        PNNConfig(pnn_scale=0.0)
