"""Weights come from where they were asked for, whole, or there is a sentence that says why not."""

import functools
import hashlib
import re
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

import piggyback_tf.backbones
from piggyback_tf.backbones import WeightsError, load_backbone, model_hash, named_variables

SHIPPED = Path(piggyback_tf.backbones.__file__).parent / "shipped"
# Recorded when the file was made; packs trained on the shipped network name it.
SHAPESNET_HASH = "7847f353bbd61fef12c8441da17c708c46dd79414d3062f899c6881dfc5b866a"


@functools.cache
def mobilenet(size: int = 32, **kwargs) -> keras.Model:
    """MobileNetV2 as keras.applications builds it, with batch norm statistics that are not the initial ones.

    Tests share it, and must leave it as it is.
    """
    keras.utils.set_random_seed(11)
    model = keras.applications.MobileNetV2(
        weights=None, input_shape=(size, size, 3), **{"include_top": False, "pooling": "avg", **kwargs}
    )
    draw = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + draw.uniform(0.0, 0.1, weight.shape))
    return model


def save_published(model: keras.Model, path: Path) -> Path:
    """Writes weights in the layout in which keras.applications publishes them."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return path


def assert_same_network(backbone, plain: keras.Model):
    size = backbone.image_size
    images = np.random.default_rng(1).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    scaled = keras.applications.mobilenet_v2.preprocess_input(images.astype("float32"))
    expected = np.asarray(plain(scaled))
    # Rescaling multiplies by 1 / 127.5 where `preprocess_input` divides by 127.5: the last bit of an input may differ.
    np.testing.assert_allclose(np.asarray(backbone.model(images)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class TestShipped:
    def test_it_is_small_and_is_the_file_its_readme_describes(self):
        content = (SHIPPED / "shapesnet.weights.h5").read_bytes()
        readme = (SHIPPED / "README.md").read_text()
        assert len(content) <= 1_000_000
        assert hashlib.sha256(content).hexdigest() in readme
        assert SHAPESNET_HASH in readme
        assert "Apache-2.0" in readme

    def test_it_is_the_default_and_has_the_recorded_hash(self):
        backbone = load_backbone("shapesnet")
        assert (backbone.weights, backbone.image_size, backbone.feature_dim) == ("shipped", 32, 96)
        assert backbone.hash == SHAPESNET_HASH
        assert load_backbone("shapesnet", weights="shipped", image_size=64).hash == SHAPESNET_HASH
        assert sum(int(np.prod(variable.shape)) for variable in backbone.model.weights) < 240_000

    def test_other_networks_have_none(self):
        with pytest.raises(WeightsError, match="'mobilenet_v2' has no weights 'shipped'.*imagenet, random"):
            load_backbone("mobilenet_v2", weights="shipped", image_size=32)
        with pytest.raises(WeightsError, match="'shapesnet' has no weights 'imagenet'.*shipped, random"):
            load_backbone("shapesnet", weights="imagenet")


class TestWeightsFiles:
    @pytest.mark.slow
    def test_weights_of_the_plain_network(self, tmp_path):
        plain = mobilenet()
        plain.save_weights(tmp_path / "mine.weights.h5")
        backbone = load_backbone("mobilenet_v2", weights=tmp_path / "mine.weights.h5", image_size=32)
        assert backbone.weights == "mine.weights.h5"
        assert backbone.hash == model_hash(plain)
        assert_same_network(backbone, plain)
        backbone.model.save_weights(tmp_path / "again.weights.h5")
        again = load_backbone("mobilenet_v2", weights=str(tmp_path / "again.weights.h5"), image_size=64)
        assert again.hash == backbone.hash

    def test_weights_in_the_published_layout(self, tmp_path):
        plain = mobilenet()
        path = save_published(plain, tmp_path / "published_no_top.h5")
        assert load_backbone("mobilenet_v2", weights=path, image_size=32).hash == model_hash(plain)

    def test_the_classifier_in_a_file_is_left_out(self, tmp_path):
        plain = mobilenet(include_top=True, pooling=None)
        plain.save_weights(tmp_path / "top.weights.h5")
        backbone = load_backbone("mobilenet_v2", weights=tmp_path / "top.weights.h5", image_size=32)
        values = named_variables(plain)
        for path, variable in named_variables(backbone.model).items():
            np.testing.assert_array_equal(variable, values[path])

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0", "inception_v3"])
    def test_other_layouts_round_trip(self, name, tmp_path):
        size = 75
        backbone = load_backbone(name, weights="random", image_size=size, seed=1)
        backbone.model.save_weights(tmp_path / "a.weights.h5")
        assert load_backbone(name, weights=tmp_path / "a.weights.h5", image_size=size).hash == backbone.hash
        published = save_published(backbone.model, tmp_path / "a.h5")
        assert load_backbone(name, weights=published, image_size=size).hash == backbone.hash

    @pytest.mark.slow
    def test_vgg_takes_files_with_and_without_the_classifier(self, tmp_path):
        plain = keras.applications.VGG16(weights=None)
        plain.save_weights(tmp_path / "top.weights.h5")
        backbone = load_backbone("vgg16", weights=tmp_path / "top.weights.h5")
        values = named_variables(plain)
        for path, variable in named_variables(backbone.model).items():
            np.testing.assert_array_equal(variable, values[path])
        published = save_published(plain, tmp_path / "top.h5")
        assert load_backbone("vgg16", weights=published).hash == backbone.hash
        backbone.model.save_weights(tmp_path / "own.weights.h5")
        assert load_backbone("vgg16", weights=tmp_path / "own.weights.h5").hash == backbone.hash
        with pytest.raises(WeightsError, match="does not fit 'vgg16_notop': it holds"):
            load_backbone("vgg16_notop", weights=tmp_path / "top.weights.h5", image_size=32)


class TestKerasFiles:
    def backbone_with_head(self, nested: bool, name: str = "mobilenet_v2"):
        backbone = load_backbone(name, weights="random", image_size=32, seed=4)
        if nested:
            model = keras.Sequential([keras.Input((32, 32, 3)), backbone.model, keras.layers.Dense(5)])
        else:
            features = keras.layers.Dense(5, name="head")(backbone.model.output)
            model = keras.Model(backbone.model.input, features)
        return backbone, model

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_model_with_a_head(self, nested, tmp_path):
        backbone, model = self.backbone_with_head(nested)
        model.compile("adam", "mse")
        model.save(tmp_path / "tuned.keras")
        loaded = load_backbone("mobilenet_v2", weights=tmp_path / "tuned.keras", image_size=64)
        assert loaded.hash == backbone.hash
        assert loaded.weights == "tuned.keras"

    def test_the_plain_network(self, tmp_path):
        plain = mobilenet()
        plain.save(tmp_path / "plain.keras")
        assert load_backbone("mobilenet_v2", weights=tmp_path / "plain.keras", image_size=32).hash == model_hash(plain)

    def test_another_network(self, tmp_path):
        _, model = self.backbone_with_head(False, "shapesnet")
        model.save(tmp_path / "tuned.keras")
        with pytest.raises(WeightsError, match="does not hold 'mobilenet_v2': 260 of 260 weights are missing"):
            load_backbone("mobilenet_v2", weights=tmp_path / "tuned.keras", image_size=32)

    def test_another_width(self, tmp_path):
        mobilenet(alpha=0.35).save(tmp_path / "narrow.keras")
        with pytest.raises(WeightsError, match=r"'Conv1/kernel' is float32\[3, 3, 3, 16\] in the file and .*32\]"):
            load_backbone("mobilenet_v2", weights=tmp_path / "narrow.keras", image_size=32)

    def test_truncated_and_foreign_files(self, tmp_path):
        path = tmp_path / "broken.keras"
        path.write_bytes(b"PK no")
        with pytest.raises(WeightsError, match="not a Keras model file, or it is truncated"):
            load_backbone("shapesnet", weights=path)
        load_backbone("shapesnet", weights="random").model.save(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(WeightsError, match="not a Keras model file, or it is truncated"):
            load_backbone("shapesnet", weights=path)
        middle = bytearray(content)
        middle[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
        path.write_bytes(bytes(middle))
        with pytest.raises(WeightsError, match="cannot be loaded"):
            load_backbone("shapesnet", weights=path)


class TestWrongFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(WeightsError, match="There is no weights file .*absent.weights.h5"):
            load_backbone("shapesnet", weights=tmp_path / "absent.weights.h5")
        with pytest.raises(WeightsError, match="is not a file"):
            load_backbone("shapesnet", weights=tmp_path)

    def test_misspelt_name(self):
        with pytest.raises(WeightsError, match="has no weights 'imagnet'.*Valid: imagenet, random, or a file"):
            load_backbone("mobilenet_v2", weights="imagnet")

    def test_other_kind(self, tmp_path):
        path = tmp_path / "weights.npz"
        path.write_bytes(b"x")
        with pytest.raises(WeightsError, match=r"must end in .*\.keras"):
            load_backbone("shapesnet", weights=path)

    def test_not_hdf5_and_truncated(self, tmp_path):
        path = tmp_path / "a.weights.h5"
        path.write_bytes(b"not the right kind" * 100)
        with pytest.raises(WeightsError, match="not an HDF5 file, or it is truncated"):
            load_backbone("shapesnet", weights=path)
        load_backbone("shapesnet", weights="random").model.save_weights(path)
        path.write_bytes(path.read_bytes()[:-5000])
        with pytest.raises(WeightsError, match="not an HDF5 file, or it is truncated"):
            load_backbone("shapesnet", weights=path)

    def test_another_network(self, tmp_path):
        path = tmp_path / "a.weights.h5"
        load_backbone("mobilenet", weights="random", image_size=32).model.save_weights(path)
        with pytest.raises(WeightsError, match="does not fit 'mobilenet_v2'"):
            load_backbone("mobilenet_v2", weights=path, image_size=32)
        with pytest.raises(WeightsError, match="does not fit 'shapesnet'"):
            load_backbone("shapesnet", weights=path)

    def test_another_width(self, tmp_path):
        mobilenet(alpha=0.35).save_weights(tmp_path / "a.weights.h5")
        with pytest.raises(WeightsError, match="does not fit 'mobilenet_v2'.*hape"):
            load_backbone("mobilenet_v2", weights=tmp_path / "a.weights.h5", image_size=32)

    def test_published_layout_of_another_network(self, tmp_path):
        path = save_published(keras.applications.MobileNet(weights=None, include_top=False), tmp_path / "a.h5")
        with pytest.raises(WeightsError, match="does not fit 'mobilenet_v2': Layer count mismatch"):
            load_backbone("mobilenet_v2", weights=path, image_size=32)
        with pytest.raises(WeightsError, match="Only networks of keras.applications"):
            load_backbone("shapesnet", weights=path)

    def test_layout_and_ending_must_agree(self, tmp_path):
        plain = mobilenet()
        path = save_published(plain, tmp_path / "a.weights.h5")
        with pytest.raises(WeightsError, match=r"names do not end in \.weights\.h5"):
            load_backbone("mobilenet_v2", weights=path, image_size=32)
        plain.save_weights(tmp_path / "b.weights.h5")
        (tmp_path / "b.weights.h5").rename(tmp_path / "b.h5")
        with pytest.raises(WeightsError, match=r"must end in \.weights\.h5"):
            load_backbone("mobilenet_v2", weights=tmp_path / "b.h5", image_size=32)

    def test_a_weight_too_few_or_a_layer_too_many(self, tmp_path):
        path = tmp_path / "a.weights.h5"
        backbone = load_backbone("shapesnet", weights="random")
        backbone.model.save_weights(path)
        with h5py.File(path, "a") as file:
            for index in range(5):
                file[f"layers/dense_{index}/vars/0"] = np.zeros(3, "float32")
        with pytest.raises(WeightsError, match="it holds 45 weights, and the network has 40"):
            load_backbone("shapesnet", weights=path)
        with h5py.File(path, "a") as file:
            del file["layers/batch_normalization_3/vars/2"]
        with pytest.raises(WeightsError, match="does not fit 'shapesnet'"):
            load_backbone("shapesnet", weights=path)

    def test_not_a_number(self, tmp_path):
        path = tmp_path / "a.weights.h5"
        backbone = load_backbone("shapesnet", weights="random")
        backbone.model.get_layer("stem_bn").moving_mean.assign(np.full(24, np.nan))
        backbone.model.save_weights(path)
        with pytest.raises(WeightsError, match="not a number, for 'stem_bn/moving_mean'"):
            load_backbone("shapesnet", weights=path)


class TestImagenet:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        """An empty folder in place of ~/.keras, and no network."""
        from keras.src.utils import file_utils

        def no_network(url, *args, **kwargs):
            raise OSError(f"no route to {url}")

        monkeypatch.setattr(file_utils.config, "keras_home", lambda: str(tmp_path))
        monkeypatch.setattr(file_utils, "urlretrieve", no_network)
        (tmp_path / "models").mkdir()
        return tmp_path / "models"

    def test_the_file_that_keras_downloads_is_used(self, cache):
        plain = mobilenet(96)
        save_published(plain, cache / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5")
        backbone = load_backbone("mobilenet_v2", image_size=96)
        assert backbone.weights == "imagenet"
        assert backbone.hash == model_hash(plain)
        assert_same_network(backbone, plain)

    def test_no_network(self, cache):
        message = "ImageNet weights of 'mobilenet_v2' could not be loaded: .*no route to https://.*weights='random'"
        with pytest.raises(WeightsError, match=message):
            load_backbone("mobilenet_v2", weights="imagenet", image_size=96)

    def test_a_broken_file_in_the_cache(self, cache):
        (cache / "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_96_no_top.h5").write_bytes(b"half a file")
        with pytest.raises(WeightsError, match="ImageNet weights of 'mobilenet_v2' could not be loaded"):
            load_backbone("mobilenet_v2", weights="imagenet", image_size=96)

    @pytest.mark.slow
    def test_efficientnet_is_the_same_network_from_the_download_and_from_a_file(self, cache, monkeypatch):
        from keras.src.utils import file_utils

        source = load_backbone("efficientnet_b0", weights="random", image_size=32, seed=9)
        path = save_published(source.model, cache / "any.h5")
        monkeypatch.setattr(file_utils, "get_file", lambda *args, **kwargs: str(path))
        downloaded = load_backbone("efficientnet_b0", weights="imagenet", image_size=32)
        from_file = load_backbone("efficientnet_b0", weights=path, image_size=32)
        assert downloaded.hash == from_file.hash == source.hash
        assert [layer.name for layer in downloaded.model.layers] == [layer.name for layer in from_file.model.layers]
        images = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
        np.testing.assert_allclose(np.asarray(downloaded.model(images)), np.asarray(from_file.model(images)), rtol=1e-6)


@pytest.mark.parametrize("size", [96, 224])
def test_real_imagenet_weights_give_what_keras_gives(size, realdata):
    path = realdata / "weights" / "mobilenet_v2_imagenet_notop.weights.h5"
    plain = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(size, size, 3), pooling="avg")
    plain.load_weights(path)
    backbone = load_backbone("mobilenet_v2", weights=path, image_size=size)
    assert backbone.hash == model_hash(plain)
    assert re.fullmatch("[0-9a-f]{64}", backbone.hash)
    assert_same_network(backbone, plain)
