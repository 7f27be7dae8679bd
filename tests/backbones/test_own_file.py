"""A network of one's own from a file: `load_backbone("PATH.keras")`."""

import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest

from piggyback_tf.backbones import Backbone, WeightsError, load_backbone, named_layers
from piggyback_tf.backbones.own import input_size
from piggyback_tf.backbones.registry import check_request
from tests.own_network import nested_network


@pytest.fixture(scope="module", name="file")
def _file(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.keras"
    nested_network().save(path)
    return path


def test_it_is_the_backbone_that_the_same_model_gives_in_python(file):
    backbone = load_backbone(str(file))
    given = Backbone.from_model(keras.saving.load_model(file))
    assert (backbone.name, backbone.weights, backbone.image_size) == ("mine.keras", "given", 32)
    assert backbone.preprocessing == given.preprocessing
    assert (backbone.hash, backbone.structure) == (given.hash, given.structure)
    assert "inner/conv2d/kernel" in {f"{path}/kernel" for path, _ in named_layers(backbone.model)}
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(backbone.model(images), given.model(images))


def test_a_sequential_model_and_one_that_leaves_the_size_open(tmp_path):
    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.GlobalAveragePooling2D(name="pool")]
    fixed = keras.Sequential([keras.Input((24, 24, 3)), *layers])
    fixed.save(tmp_path / "fixed.keras")
    assert load_backbone(tmp_path / "fixed.keras").image_size == 24
    images = keras.Input((None, None, 3))
    keras.Model(images, layers[1](layers[0](images))).save(tmp_path / "open.keras")
    assert load_backbone(tmp_path / "open.keras", image_size=40).image_size == 40
    with pytest.raises(ValueError, match="does not say how large its images are"):
        load_backbone(tmp_path / "open.keras")


def test_all_that_can_be_is_checked_without_keras(file):
    program = (
        "import sys; from piggyback_tf.backbones.registry import check_request\n"
        f"assert check_request({str(file)!r}, None, None)[1:] == ('given', 32)\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("absent.keras", {}, "There is no model file '.*absent.keras'"),
        ("folder.keras", {}, "'.*folder.keras' is not a file"),
        ("text.keras", {}, "text.keras' is not a Keras model file, or it is truncated"),
        ("other.keras", {}, "other.keras' is not a Keras model file: "),
        ("list.keras", {"image_size": 32}, "list.keras' cannot be loaded: .* from Python, where Keras knows them"),
        ("mine.keras", {"image_size": 48}, "takes images of 32 x 32 pixels only. Received: image_size=48"),
        ("mine.keras", {"weights": "imagenet"}, "holds the weights of its network; leave weights=imagenet out"),
        ("mine.keras", {"weights": "more.weights.h5"}, "leave weights=more.weights.h5 out"),
        ("map.keras", {}, "map.keras' cannot be a backbone. Model 'map' must end in features of shape"),
        ("nan.keras", {}, "nan.keras' has no value, or not a number, for 'conv/kernel'"),
        ("mine.h5", {}, r"is no name of a backbone, .* model.save\('mine.keras'\) writes one"),
        ("saved_model/mine", {}, "is no name of a backbone"),
    ],
)
def test_what_is_no_network_gets_a_sentence(name, given, sentence, tmp_path):
    nested_network().save(tmp_path / "mine.keras")
    images = keras.Input((8, 8, 3))
    features = keras.layers.Conv2D(2, 3, name="conv")(images)
    keras.Model(images, features, name="map").save(tmp_path / "map.keras")
    broken = keras.Model(images, keras.layers.GlobalAveragePooling2D()(features))
    broken.get_layer("conv").kernel.assign(np.full((3, 3, 3, 2), np.nan))
    broken.save(tmp_path / "nan.keras")
    (tmp_path / "folder.keras").mkdir()
    (tmp_path / "text.keras").write_text("no model")
    _zip(tmp_path / "other.keras", {"readme.txt": "no model"})
    _zip(tmp_path / "list.keras", {"config.json": "[]", "metadata.json": "{}"})
    with pytest.raises(ValueError, match=sentence):
        load_backbone(str(tmp_path / name), **given)


@pytest.mark.slow
def test_layers_that_keras_does_not_know(tmp_path):
    class Mine(keras.layers.Layer):
        def call(self, images):
            return images

    images = keras.Input((8, 8, 3))
    keras.Model(images, keras.layers.GlobalAveragePooling2D()(Mine()(images))).save(tmp_path / "own.keras")
    with pytest.raises(WeightsError, match=r"cannot be loaded: .*Mine.* from Python, where Keras knows them"):
        load_backbone(tmp_path / "own.keras")


def test_what_keras_would_refuse_is_said_before_it_is_loaded(tmp_path):
    @keras.saving.register_keras_serializable("theirs")
    class Registered(keras.layers.Layer):
        def call(self, images):
            return images

    @keras.saving.register_keras_serializable("theirs")
    def loss(true, given):
        return given - true

    class Subclassed(keras.Model):
        def call(self, images):
            return keras.ops.mean(images, (1, 2))

    def features(images):
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3, name="conv")(images))

    rgb, grey = keras.Input((8, 8, 3)), keras.Input((8, 8, 1))
    models = {
        "grey": keras.Model(grey, features(grey)),
        "two": keras.Model([rgb, grey], features(keras.layers.Concatenate()([rgb, grey]))),
        "lambda": keras.Model(rgb, features(keras.layers.Lambda(lambda images: images / 255.0)(rgb))),
        "registered": keras.Model(rgb, features(keras.Sequential([Registered()])(rgb))),
        "subclassed": Subclassed(),
    }
    models["subclassed"](np.zeros((1, 8, 8, 3), "float32"))
    # What a model was compiled with is not loaded, and may be anybody's.
    models["compiled"] = keras.Model(rgb, features(rgb))
    models["compiled"].compile(loss=loss)
    for name, model in models.items():
        model.save(tmp_path / f"{name}.keras")
    program = (
        "import pathlib, sys; from piggyback_tf.backbones.registry import check_request\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.keras')):\n"
        "    try: print(check_request(str(path), None, None)[2])\n"
        "    except ValueError as error: print(error)\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = dict(zip(sorted(models), done.stdout.splitlines(), strict=True))
    assert said["compiled"] == "8"
    assert "takes images of shape (None, 8, 8, 1), and a backbone takes RGB" in said["grey"]
    assert "keras.ops.image.rgb_to_grayscale(images))).save('rgb.keras')." in said["grey"]
    assert "It has 2 inputs, and a backbone takes RGB images alone." in said["two"]
    assert "has Python code in a Lambda layer" in said["lambda"]
    assert "'theirs>Registered' in it is not a part of Keras. A model with layers of your own" in said["registered"]
    assert "Its model is of a class of its own, 'Subclassed'" in said["subclassed"]
    # The cure that is named for grey images.
    keras.Model(rgb, models["grey"](keras.ops.image.rgb_to_grayscale(rgb))).save(tmp_path / "rgb.keras")
    assert load_backbone(tmp_path / "rgb.keras").image_size == 8
    # Here Keras knows the class, so that nothing is refused.
    assert load_backbone(tmp_path / "registered.keras").image_size == 8


def test_a_path_begins_at_the_users_folder(tmp_path, monkeypatch):
    nested_network().save(tmp_path / "mine.keras")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_request("~/mine.keras", None, None)[2] == 32


def test_sizes_are_read_where_files_say_them(tmp_path):
    def size(config):
        _zip(tmp_path / "any.keras", {"config.json": json.dumps(config)})
        return input_size(tmp_path / "any.keras")

    layer = {"class_name": "InputLayer", "config": {"batch_shape": [None, 96, 96, 3]}}
    assert size({"config": {"layers": [{"class_name": "Dense"}, layer]}}) == 96
    assert size({"config": {"layers": [], "build_input_shape": [None, 8, 8, 3]}}) == 8
    for strange in ([], {}, {"config": None}, {"config": {"layers": 3}}, {"config": {"layers": ["x"]}}):
        assert size(strange) is None
    for shape in ([None, None, None, 3], [None, 4, 5, 3], [None, 4], "x", [None, "a", "a", 3]):
        assert size({"config": {"build_input_shape": shape}}) is None


def test_a_classifier_is_said_to_be_one(tmp_path, caplog):
    images = keras.Input((8, 8, 3))
    features = keras.layers.GlobalAveragePooling2D()(images)
    keras.Model(images, keras.layers.Dense(5, activation="softmax")(features)).save(tmp_path / "classes.keras")
    with caplog.at_level("WARNING"):
        load_backbone(tmp_path / "classes.keras")
        load_backbone(tmp_path / "classes.keras")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "classes.keras' ends in a softmax" in said
    assert check_request(str(tmp_path / "classes.keras"), None, None)[2] == 8
