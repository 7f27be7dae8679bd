"""The registry: nothing of keras.applications is missing, names and sizes are checked, listing is cheap."""

import inspect
import re
import subprocess
import sys

import keras
import pytest
from keras.src.applications import imagenet_utils

from piggyback_tf.backbones import list_backbones, load_backbone, register_backbone
from piggyback_tf.backbones.networks import applications


def snake_case(constructor: str) -> str:
    name = re.sub(r"(?<=[0-9a-z])V(?=\d)", "_v", constructor)
    name = name.replace("ConvNeXtXLarge", "convnext_xlarge").replace("ConvNeXt", "convnext_")
    name = name.replace("MobileNet", "mobilenet").replace("DenseNet", "densenet").replace("NASNet", "nasnet_")
    name = name.replace("EfficientNet", "efficientnet").replace("ResNet", "resnet")
    name = re.sub(r"(?<=[0-9a-z])(?=[A-Z])|(?<=n)(?=resnet)|(?<=v2)(?=[A-Z])", "_", name).lower()
    return re.sub("_+", "_", name)


def test_every_network_of_keras_applications_is_registered():
    constructors = {name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)}
    assert len(constructors) >= 40
    registered = {
        constructor for _, _, networks in applications._FAMILIES.values() for constructor, _ in networks.values()
    }
    assert registered == constructors
    names = set(list_backbones())
    for constructor in constructors:
        assert snake_case(constructor) in names


def test_names_belong_to_their_constructors():
    for _, _, networks in applications._FAMILIES.values():
        for name, (constructor, _) in networks.items():
            assert name.removesuffix("_notop") == snake_case(constructor)


def test_default_and_smallest_sizes_are_those_of_keras(monkeypatch):
    class Sizes(Exception):
        pass

    def stop(input_shape, default_size, min_size, **kwargs):
        raise Sizes((default_size, min_size))

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", stop)
    for family, (_, min_size, networks) in applications._FAMILIES.items():
        if family == "mobilenet_v3":  # It has a check of its own, with the sizes of MobileNetV2.
            continue
        for constructor, size in networks.values():
            with pytest.raises(Sizes) as caught:
                getattr(keras.applications, constructor)(weights=None)
            assert caught.value.args[0] == (size, min_size), constructor


def test_list_matches_patterns_and_is_sorted():
    assert list_backbones("resnet*") == [
        "resnet101", "resnet101_v2", "resnet152", "resnet152_v2", "resnet50", "resnet50_torch", "resnet50_v2",
    ]  # fmt: skip
    assert list_backbones("vgg*") == ["vgg16", "vgg16_bn", "vgg16_notop", "vgg16_torch", "vgg19", "vgg19_notop"]
    assert list_backbones("shapesnet") == ["shapesnet"]
    assert list_backbones("no such*") == []


def test_listing_does_not_load_tensorflow():
    program = (
        "import sys; from piggyback_tf.backbones import list_backbones; assert 'vgg16' in list_backbones(); "
        "assert 'keras' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_unknown_name_lists_close_ones():
    with pytest.raises(ValueError, match="Unknown backbone 'resnet51'.*'resnet50'"):
        load_backbone("resnet51")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'shapesnet' is registered already"):
        register_backbone("shapesnet", family="x", image_size=32, min_size=32, preprocessing="none")(lambda size: None)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("inception_v3", 74, "at least 75 x 75"),
        ("inception_resnet_v2", 74, "at least 75 x 75"),
        ("xception", 70, "at least 71 x 71"),
        ("nasnet_mobile", 31, "at least 32 x 32"),
        ("vgg16_notop", 31, "at least 32 x 32"),
        ("resnet50", 0, "at least 32 x 32"),
        ("vgg16", 96, "of 224 x 224 pixels only.*'vgg16_notop'"),
        ("vgg16_bn", 64, "of 224 x 224 pixels only.*'vgg16_notop'"),
        ("vgg16_torch", 64, "of 224 x 224 pixels only.*'vgg16_notop'"),
        ("wrn28_4", 31, "at least 32 x 32"),
        ("vgg19", 256, "of 224 x 224 pixels only.*'vgg19_notop'"),
        ("shapesnet", 16, "of 24 to 64 pixels"),
        ("shapesnet", 96, "of 24 to 64 pixels.*larger network"),
    ],
)
def test_wrong_image_size_names_the_limit(name, size, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(name, weights="random", image_size=size)


def test_channels_first_is_refused(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    with pytest.raises(ValueError, match="channels_last"):
        load_backbone("shapesnet", weights="random")
