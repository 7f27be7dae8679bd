"""What both designs are made of: device layers, what is folded into them, taps, and codes of masks."""

import keras
import numpy as np
import pytest

from export.lite.inputs.input_format import Changes, MaskCode
from export.lite.inputs.layers import DEVICE_LAYERS, DeviceLayer, DeviceNorm, check_device_layer
from export.lite.inputs.network import DeviceNetwork, followers
from export.lite.inputs.run import StatelessModel
from export.lite.inputs.write import export_inputs
from export.lite.options import LiteOptions
from piggyback_tf.backbones import Backbone, load_backbone
from piggyback_tf.masking import share
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import pack_of, small_backbone, trained_model

layers = keras.layers
KINDS = {
    "pointwise": (layers.Conv2D, {"filters": 5, "kernel_size": 1}),
    "pointwise_strides": (layers.Conv2D, {"filters": 5, "kernel_size": 1, "strides": 2}),
    "same": (layers.Conv2D, {"filters": 16, "kernel_size": 3, "padding": "same", "activation": "relu"}),
    "gathered": (layers.Conv2D, {"filters": 2, "kernel_size": (3, 4), "strides": 2, "padding": "same"}),
    "dilated": (layers.Conv2D, {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}),
    "groups": (layers.Conv2D, {"filters": 6, "kernel_size": 3, "groups": 2, "use_bias": False}),
    "pointwise_groups": (layers.Conv2D, {"filters": 6, "kernel_size": 1, "groups": 2}),
    "depthwise": (layers.DepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2, "strides": 2, "padding": "same"}),
    "depthwise_dilated": (layers.DepthwiseConv2D, {"kernel_size": 3, "dilation_rate": 2}),
    "separable": (layers.SeparableConv2D, {"filters": 5, "kernel_size": 3, "strides": 2, "depth_multiplier": 2}),
    "transpose": (layers.Conv2DTranspose, {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same"}),
    "transpose_valid": (layers.Conv2DTranspose, {"filters": 5, "kernel_size": 2, "strides": 3}),
    "transpose_output_padding": (
        layers.Conv2DTranspose,
        {"filters": 5, "kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 0},
    ),
    "dense": (layers.Dense, {"units": 5, "activation": "tanh"}),
}


@pytest.mark.parametrize("size", [7, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_device_layer_computes_what_its_layer_does(kind, size):
    keras.utils.set_random_seed(1)
    layer = KINDS[kind][0](**KINDS[kind][1], bias_initializer="normal")
    images = keras.random.normal((1, size, size, 4))
    expected = layer(images)
    device = DEVICE_LAYERS[type(layer)](layer, "x", None, None)
    for filter_, name in zip(device.filters, (w.name for w in layer.weights), strict=False):
        filter_.variable.assign(filter_.arrange(getattr(layer, name).numpy()))
    if device.offset is not None:
        device.offset.assign(layer.bias)
    assert device.compute_output_spec(keras.KerasTensor(images.shape)).shape == expected.shape
    np.testing.assert_allclose(device(images), expected, atol=1e-5)


def test_dilated_depthwise_and_groups_are_builtin(tmp_path):
    inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(4, 3, groups=1, dilation_rate=2, padding="same")(inputs)
    x = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same")(x)
    x = layers.Conv2D(4, 3, groups=2)(x)
    x = layers.SeparableConv2D(4, 3, dilation_rate=2, padding="same")(x)
    backbone = Backbone.from_model(keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="odd"))
    _compare(backbone, tmp_path, limit=1e-6)


def _compare(backbone, folder, limit, **variant):
    """Exports a task of a base for `input` and compares its answers with the bank's."""
    pack = pack_of(trained_model(backbone, **variant), backbone)
    _, inputs = export_inputs(backbone, [pack], folder, LiteOptions(design="input"))
    model = StatelessModel(folder / "model.tflite")
    model.set_task(inputs)
    size = backbone.image_size
    images = np.random.default_rng(3).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    expected = TaskBank(backbone).add(pack).predict(images, task=pack.task)
    np.testing.assert_allclose(model.predict(images), expected, atol=limit)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "densenet121", "efficientnet_b0", "shapesnet"])
def test_networks(tmp_path, name):
    backbone = load_backbone(name, weights="shipped" if name == "shapesnet" else "random", image_size=32)
    _compare(backbone, tmp_path, limit=1e-4, norm="task")


def _folded(backbone, **changes):
    """Returns how many device layers hold batch norm and a rectifier, and how many layers of batch norm stand alone."""
    masked = frozenset(f"{name}/kernel" for name in changes.pop("names"))
    network = DeviceNetwork(backbone, Changes(masked, bits=1, classes=2, **changes), backbone.structure.digest)
    device = [layer for layer in network._model._flatten_layers() if isinstance(layer, DeviceLayer)]
    alone = [layer for layer in network._model._flatten_layers() if isinstance(layer, DeviceNorm)]
    return (
        sum(layer.norm is not None for layer in device),
        sum(layer._after is not None for layer in device),
        len(alone),
    )


def test_what_follows_is_folded_where_only_one_layer_reads_it():
    inputs = keras.Input((8, 8, 3))
    a = layers.Conv2D(4, 3, name="a")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(a))
    # Two readers, an activation in between, and a layer that is called twice.
    b = layers.Conv2D(4, 3, name="b")(x)
    x = layers.BatchNormalization()(b) + b
    x = layers.BatchNormalization()(layers.Conv2D(4, 1, activation="relu", name="c")(x))
    twice = layers.Conv2D(4, 1, name="d")
    x = layers.ReLU(max_value=6)(layers.BatchNormalization()(twice(twice(x))))
    # A batch norm that belongs to two layers, only one of which has a mask.
    shared = layers.BatchNormalization()
    x = shared(layers.Conv2D(4, 1, name="e")(x)) + shared(layers.Conv2D(4, 1, name="f")(x))
    backbone = Backbone.from_model(keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="chain"))
    assert _folded(backbone, names="abcde", norm=True) == (1, 1, 4)
    assert _folded(backbone, names="abcde", norm=False) == (1, 1, 0)
    assert _folded(backbone, names="b", norm=True) == (0, 0, 5)


def test_followers_within_nested_models():
    model = share(small_backbone().model)
    names = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    found = {name: found.name for name, layer in names.items() if (found := followers(model).get(id(layer)))}
    assert found["depthwise_conv2d"] == "batch_normalization"
    assert found["conv2d"] == "batch_normalization"
    # The second batch norm is the end of its model, and the first one has two readers.
    assert "batch_normalization" not in found


def test_what_a_nested_model_returns_has_a_reader_outside():
    inputs = keras.Input((8, 8, 3))
    conv = layers.Conv2D(4, 3)
    x = conv(inputs)
    model = keras.Model(inputs, [x, layers.ReLU()(x)])
    assert followers(model) == {id(model.layers[0]): conv}


@pytest.mark.parametrize("bits", [1, 2])
def test_mask_codes(bits):
    code = MaskCode(bits)
    mask = np.random.default_rng(bits).choice([0, 1] if bits == 1 else [-1, 0, 1], (3, 7)).astype(np.int8)
    written = code.write(mask)
    assert written.dtype == np.uint8 and written.shape == (code.length(21),)
    np.testing.assert_array_equal(code.expand(written, (3, 7)), mask)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (layers.Conv2D(2, 3, data_format="channels_first"), "channels first"),
        (layers.Dense(2, dtype="mixed_float16"), "computes in float16"),
        (layers.Conv1D(2, 3), "is a Conv1D"),
    ],
)
def test_layers_that_cannot_be_exported(layer, reason):
    with pytest.raises(ValueError, match=f"'stem/x' cannot be exported with masks as inputs: it .*{reason}"):
        check_device_layer(layer, "stem/x")
