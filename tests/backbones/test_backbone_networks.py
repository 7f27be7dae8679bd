"""One network of each family: input, output, names, hash and preprocessing."""

import hashlib
import importlib
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from piggyback_tf.backbones import Backbone, is_container, list_backbones, load_backbone, model_hash, named_variables
from piggyback_tf.backbones.networks.applications import build_application
from piggyback_tf.backbones.preprocessing import preprocess_images
from piggyback_tf.backbones.registry import get_entry
from piggyback_tf.backbones.scaling import DESCRIPTIONS, Scaling
from piggyback_tf.backbones.structure_text import structure_text

# The smallest network of each family, the module in keras.applications that scales its images, and F.
FAMILIES = {
    "convnext": ("convnext_tiny", "convnext", 768),
    "densenet": ("densenet121", "densenet", 1024),
    "efficientnet": ("efficientnet_b0", "efficientnet", 1280),
    "efficientnet_v2": ("efficientnet_v2_s", "efficientnet_v2", 1280),
    "efficientnet_v2_b": ("efficientnet_v2_b0", "efficientnet_v2", 1280),
    "inception_resnet_v2": ("inception_resnet_v2", "inception_resnet_v2", 1536),
    "inception_v3": ("inception_v3", "inception_v3", 2048),
    "mobilenet": ("mobilenet", "mobilenet", 1024),
    "mobilenet_v2": ("mobilenet_v2", "mobilenet_v2", 1280),
    "mobilenet_v3": ("mobilenet_v3_small", "mobilenet_v3", 576),
    "nasnet": ("nasnet_mobile", "nasnet", 1056),
    "resnet": ("resnet50", "resnet", 2048),
    "resnet_v2": ("resnet50_v2", "resnet_v2", 2048),
    "shapesnet": ("shapesnet", None, 96),
    "torch_densenet": ("densenet121_torch", None, 1024),
    "torch_resnet": ("resnet50_torch", None, 2048),
    "vgg_notop": ("vgg16_notop", "vgg16", 512),
    "wide_resnet": ("wrn28_4", None, 256),
    "xception": ("xception", "xception", 2048),
}
# Networks whose layers Keras names by what was built before in the process.
NUMBERED = ("inception_v3", "inception_resnet_v2", "nasnet_mobile", "xception")


def some_images(size: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_every_family_is_tested():
    families = {get_entry(name).family for name in list_backbones()}
    # At 224 px only; narrow ones are tested in their place (test_tensor_weights.py).
    assert families == {*FAMILIES, "vgg", "torch_vgg", "torch_vgg_bn"}


# Built elsewhere in the tests, too, and slow to build.
SLOW = (
    *("convnext", "densenet", "efficientnet", "efficientnet_v2", "efficientnet_v2_b", "inception_resnet_v2"),
    *("inception_v3", "nasnet", "resnet_v2", "torch_densenet", "torch_resnet", "xception"),
)


@pytest.mark.parametrize("family", [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in FAMILIES])
def test_smallest_images_give_features(family):
    name, module, features = FAMILIES[family]
    size = get_entry(name).min_size
    backbone = load_backbone(name, weights="random", image_size=size)
    model = backbone.model
    assert (backbone.name, backbone.image_size, backbone.weights) == (name, size, "random")
    assert model.input_shape == (None, size, size, 3)
    assert model.inputs[0].dtype == "float32"
    assert model.output_shape == (None, features)
    assert backbone.feature_dim == features
    # Nothing is nested but the stem and the downsampling blocks that ConvNeXt has.
    assert all(isinstance(layer, keras.Sequential) for layer in model.layers if is_container(layer))
    assert family == "convnext" or not any(is_container(layer) for layer in model.layers)

    images = some_images(size)
    result = keras.ops.convert_to_numpy(model(images))
    assert np.isfinite(result).all()
    np.testing.assert_array_equal(result, np.asarray(model(images.astype("float32"))))
    if module is None or family == "efficientnet":
        return
    # The same as the network of keras.applications behind its own preprocess_input.
    constructor = get_entry(name).build.keywords["constructor"]
    plain = getattr(keras.applications, constructor)(
        weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3)
    )
    plain.set_weights(model.get_weights())
    scaled = importlib.import_module(f"keras.applications.{module}").preprocess_input(images.astype("float32"))
    expected = keras.ops.convert_to_numpy(plain(scaled))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_efficientnet_always_has_the_scaling_of_the_imagenet_weights():
    model = load_backbone("efficientnet_b0", weights="random", image_size=32).model
    x = keras.random.uniform((1, 32, 32, 3), seed=0)
    scaled = keras.Model(model.input, model.get_layer("rescaling_1").output)(255.0 * x)
    # Weights as created: mean 0 and variance 1.
    np.testing.assert_allclose(scaled, np.asarray(x) / np.sqrt([0.229, 0.224, 0.225]), rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("inception_r", "nasnet"))) for name in NUMBERED],
)
def test_built_twice_the_paths_and_the_hash_are_the_same(name):
    size = get_entry(name).min_size
    first = load_backbone(name, weights="random", image_size=size, seed=3)
    second = load_backbone(name, weights="random", image_size=size + 5, seed=3)
    assert [layer.name for layer in first.model.layers] == [layer.name for layer in second.model.layers]
    assert list(named_variables(first.model)) == list(named_variables(second.model))
    assert first.hash == second.hash


def test_random_weights_depend_on_the_seed_and_leave_other_random_numbers_alone():
    def numbers(load: bool):
        random.seed(7)
        np.random.seed(7)
        tf.random.set_seed(7)
        if load:
            load_backbone("shapesnet", weights="random", seed=5)
        return random.random(), np.random.random(), float(tf.random.uniform(()))

    assert numbers(load=False) == numbers(load=True)
    random.seed(1)
    first = load_backbone("shapesnet", weights="random", seed=5)
    random.seed(2)
    assert load_backbone("shapesnet", weights="random", seed=5, image_size=64).hash == first.hash
    assert load_backbone("shapesnet", weights="random", seed=6).hash != first.hash


@pytest.mark.parametrize("mode", DESCRIPTIONS)
def test_preprocessing_is_that_of_keras(mode):
    images = np.random.default_rng(1).uniform(0, 255, (3, 8, 8, 3)).astype("float32")
    expected = keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=mode)
    model = _preprocessing_model(mode)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=0, atol=1e-6 * max(1.0, scale))


@pytest.mark.parametrize("mode", DESCRIPTIONS)
def test_preprocessing_is_saved_as_layers_of_keras(mode, tmp_path):
    images = some_images(8).astype("float32")
    model = _preprocessing_model(mode)
    model.save(tmp_path / "model.keras")
    assert b"piggyback" not in (tmp_path / "model.keras").read_bytes()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(images)), np.asarray(model(images)))


def _preprocessing_model(mode):
    images = keras.Input((8, 8, 3))
    return keras.Model(images, preprocess_images(images, mode))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_names_the_mode_of_its_module(family):
    name, module, _ = FAMILIES[family]
    preprocessing = get_entry(name).preprocessing
    if module is None:
        assert preprocessing == DESCRIPTIONS["tf" if family == "shapesnet" else "torch"]
        return
    images = some_images(4).astype("float32")
    expected = importlib.import_module(f"keras.applications.{module}").preprocess_input(images.copy())
    if preprocessing.startswith("inside the network"):
        np.testing.assert_array_equal(expected, images)
    else:
        mode = preprocessing.partition(":")[0]
        found = np.asarray(preprocess_images(keras.ops.convert_to_tensor(images), mode))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
        assert preprocessing == DESCRIPTIONS[mode]


@pytest.mark.parametrize("name", ["mobilenet", "densenet121", "resnet50", "vgg16_notop", "vgg16"])
def test_scaling_does_not_depend_on_its_description(name, monkeypatch):
    entry = get_entry(name)

    def scaled():
        with keras.StatelessScope(initialize_variables=False):
            return structure_text(entry.build(entry.image_size))

    expected = scaled()
    assert "layers.Rescaling(" in expected[0]
    for mode, description in DESCRIPTIONS.items():
        monkeypatch.setitem(DESCRIPTIONS, mode, f"{description}.")
    assert scaled() == expected
    scaling = Scaling("tf", "some words")
    with keras.StatelessScope(initialize_variables=False):
        model = build_application(32, name="x", constructor="MobileNet", scaling=scaling)
    assert type(model.layers[1]) is keras.layers.Rescaling


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_preprocessing_computes_in_float32_under_mixed_precision(policy):
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        backbone = load_backbone("shapesnet", weights="random")
    finally:
        keras.config.set_dtype_policy(previous)
    # 200.3 has no close neighbour in half precision.
    images = np.full((1, 32, 32, 3), 200.3, "float32")
    scaled = keras.Model(backbone.model.input, backbone.model.get_layer("preprocessing").output)(images)
    assert float(scaled[0, 0, 0, 0]) == pytest.approx(200.3 / 127.5 - 1, rel=1e-6)
    assert keras.backend.standardize_dtype(backbone.model(images).dtype) == policy.removeprefix("mixed_")
    assert backbone.hash == load_backbone("shapesnet", weights="random").hash


def test_unknown_preprocessing_mode():
    with pytest.raises(ValueError, match="Unknown preprocessing mode 'tff'.*'tf'"):
        preprocess_images(keras.Input((8, 8, 3)), "tff")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_vgg_keeps_its_fully_connected_layers(name):
    backbone = load_backbone(name, weights="random")
    names = [layer.name for layer in backbone.model.layers]
    assert names[-5:] == ["flatten", "fc1", "fc1_dropout", "fc2", "fc2_dropout"]
    assert backbone.model.output_shape == (None, 4096)
    assert {backbone.model.get_layer(f"fc{i}_dropout").rate for i in (1, 2)} == {0.5}
    images = some_images(224, 1)
    plain = getattr(keras.applications, name.upper())(weights=None)
    plain.set_weights([*backbone.model.get_weights(), *plain.get_layer("predictions").get_weights()])
    expected = keras.Model(plain.input, plain.get_layer("fc2").output)(
        keras.applications.vgg16.preprocess_input(images.astype("float32"))
    )
    np.testing.assert_allclose(np.asarray(backbone.model(images)), np.asarray(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_model_round_trips_through_a_keras_file(tmp_path):
    for name in ("shapesnet", "efficientnet_b0"):
        backbone = load_backbone(name, weights="random", image_size=32)
        backbone.model.save(tmp_path / "model.keras")
        loaded = Backbone.from_model(keras.saving.load_model(tmp_path / "model.keras"))
        assert loaded.hash == backbone.hash
        images = some_images(32)
        np.testing.assert_array_equal(np.asarray(loaded.model(images)), np.asarray(backbone.model(images)))


class TestHash:
    def model(self, kernel, name="a", dtype="float32"):
        layer = keras.layers.Dense(kernel.shape[1], use_bias=False, name=name, dtype=dtype)
        model = keras.Sequential([keras.Input((kernel.shape[0],)), layer])
        layer.set_weights([kernel])
        return model

    def test_it_is_made_of_length_and_content_of_each_field(self):
        # Written out, because a changed rule would make every pack foreign.
        kernel = np.arange(6, dtype="float32").reshape(2, 3)
        fields = [b"a/kernel", b"2,3", b"float32", kernel.astype("<f4").tobytes()]
        stream = b"".join(len(field).to_bytes(8, "little") + field for field in fields)
        assert model_hash(self.model(kernel)) == hashlib.sha256(b"piggyback_tf base 1\n" + stream).hexdigest()

    def test_it_sees_path_shape_dtype_and_bytes(self):
        kernel = np.zeros((2, 3), "float32")
        models = [
            self.model(kernel),
            self.model(kernel, name="b"),
            self.model(kernel.reshape(3, 2)),
            self.model(kernel, dtype="float16"),
            self.model(np.where(kernel == 0, -0.0, kernel).astype("float32")),
            self.model(np.concatenate([kernel, kernel])),
        ]
        assert len({model_hash(model) for model in models}) == len(models)

    def test_it_does_not_see_trainable_flags_or_seeds(self):
        kernel = np.ones((2, 3), "float32")
        frozen = self.model(kernel)
        frozen.trainable = False
        assert model_hash(frozen) == model_hash(self.model(kernel))
        hashes = set()
        for seed in (1, 2):
            dense = keras.layers.Dense(3, kernel_initializer="ones", name="a")
            hashes.add(model_hash(keras.Sequential([keras.Input((2,)), dense, keras.layers.Dropout(0.5, seed=seed)])))
        assert len(hashes) == 1

    def test_bfloat16_and_integers_can_be_hashed(self):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Normalization()])
        assert "normalization/count" in named_variables(model)
        assert len(model_hash(model)) == 64
        assert model_hash(self.model(np.ones((2, 2), "float32"), dtype="bfloat16")) != model_hash(
            self.model(np.ones((2, 2), "float32"))
        )


class TestFromModel:
    def network(self, size=16, channels=3):
        return keras.Sequential(
            [
                keras.Input((size, size, channels)),
                keras.layers.Conv2D(4, 3),
                keras.layers.GlobalAveragePooling2D(),
            ],
            name="mine",
        )

    def test_sequential_and_functional(self):
        model = self.network()
        names = [layer.name for layer in model.layers]
        backbone = Backbone.from_model(model)
        assert (backbone.name, backbone.image_size, backbone.feature_dim, backbone.weights) == ("mine", 16, 4, "given")
        assert backbone.hash == model_hash(model)
        assert [layer.name for layer in model.layers] == names
        functional = keras.Model(model.inputs[0], model.outputs[0], name="other")
        assert Backbone.from_model(functional, name="x").name == "x"

    def test_the_hash_is_taken_anew_each_time(self):
        backbone = Backbone.from_model(self.network())
        before = backbone.hash
        assert backbone.hash == before
        variable = backbone.model.weights[0]
        variable.assign_add(keras.ops.ones(variable.shape))
        assert backbone.hash != before

    def test_open_image_size_must_be_given(self):
        model = self.network(size=None)
        with pytest.raises(ValueError, match="needs one image size"):
            Backbone.from_model(model)
        assert Backbone.from_model(model, image_size=20).image_size == 20
        with pytest.raises(ValueError, match="needs one image size.*image_size=20"):
            Backbone.from_model(self.network(16), image_size=20)

    def test_other_models_are_refused(self):
        class Own(keras.Model):
            pass

        with pytest.raises(ValueError, match="functional or sequential"):
            Backbone.from_model(Own())
        with pytest.raises(ValueError, match="functional or sequential"):
            Backbone.from_model("resnet50")
        with pytest.raises(ValueError, match="is not built"):
            Backbone.from_model(keras.Sequential([keras.layers.Dense(2)]))
        with pytest.raises(ValueError, match=r"\[B, S, S, 3\]"):
            Backbone.from_model(self.network(channels=1))
        with pytest.raises(ValueError, match=r"\[B, F\]"):
            Backbone.from_model(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)]))
