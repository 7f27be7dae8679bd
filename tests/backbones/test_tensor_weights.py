"""Weights as PyTorch has them: networks as torchvision's compute the same with them, and what does not fit is said."""

import dataclasses
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from piggyback_tf.backbones import Backbone, WeightsError, list_backbones, load_backbone, rename_layers
from piggyback_tf.backbones.networks import torchvision
from piggyback_tf.backbones.networks.torchvision import (
    build_torch_densenet,
    build_torch_resnet,
    build_torch_vgg,
    densenet_layout,
    resnet_layout,
    vgg_layout,
)
from piggyback_tf.backbones.networks.wide_resnet import build_wide_resnet
from piggyback_tf.backbones.registry import get_entry
from piggyback_tf.backbones.tensor_files import in_file
from piggyback_tf.backbones.tensor_weights import load_tensors
from piggyback_tf.problems import HeadSpec, network_for
from tests.backbones import numpy_networks

MEAN, DEVIATION = (0.5, 0.45, 0.4), (0.2, 0.25, 0.3)
CONFIG = {"architecture": "small", "pretrained_cfg": {"mean": MEAN, "std": DEVIATION}}
WIDTHS, BLOCKS = (3, 4, 5, 6, 7), (1, 2, 1, 1)


@dataclasses.dataclass(frozen=True)
class Small:
    """A narrow network: how it is built here, how files name it, and how NumPy computes it."""

    build: functools.partial
    layout: object
    compute: functools.partial
    spread: bool = True
    size: int = 65


def _vgg(batch_norm: bool, timm: bool) -> Small:
    return Small(
        functools.partial(build_torch_vgg, name="small", batch_norm=batch_norm, widths=WIDTHS, features=9),
        vgg_layout("small", batch_norm=batch_norm, channels=WIDTHS[-1]),
        functools.partial(numpy_networks.vgg, widths=WIDTHS, features=9, batch_norm=batch_norm, timm=timm),
        spread=batch_norm,
    )


SMALL = {
    "vgg of timm": _vgg(batch_norm=False, timm=True),
    "vgg of torchvision": _vgg(batch_norm=False, timm=False),
    "vgg with batch norm": _vgg(batch_norm=True, timm=True),
    "resnet": Small(
        functools.partial(build_torch_resnet, name="small", blocks=BLOCKS, width=4),
        resnet_layout("small", BLOCKS),
        functools.partial(numpy_networks.resnet, blocks=BLOCKS, width=4),
    ),
    "densenet": Small(
        functools.partial(build_torch_densenet, name="small", blocks=BLOCKS, growth=4),
        densenet_layout("small", BLOCKS),
        functools.partial(numpy_networks.densenet, blocks=BLOCKS, growth=4),
    ),
}


def _write(folder: Path, tensors: dict[str, np.ndarray], config: object = CONFIG) -> Path:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


@functools.cache
def _computed(name: str) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Returns the tensors of a small network, images, and what NumPy makes of them."""
    small = SMALL[name]
    torch = numpy_networks.Torch(spread=small.spread)
    images = np.random.default_rng(1).integers(0, 256, (2, small.size, small.size, 3)).astype("float32")
    features = small.compute(torch, numpy_networks.scaled(images, MEAN, DEVIATION))
    return torch.tensors, images, features


def _loaded(name: str, path: Path) -> Backbone:
    small = SMALL[name]
    file = in_file(path, "small", small.layout)
    model = small.build(small.size, file.statistics)
    rename_layers(model)
    load_tensors(model, file, "small")
    return Backbone.from_model(model)


def _difference(found, expected) -> float:
    """Returns the largest difference, as a part of the largest feature."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", SMALL)
def test_a_network_computes_what_pytorch_computes(name, tmp_path):
    tensors, images, features = _computed(name)
    backbone = _loaded(name, _write(tmp_path, tensors))
    assert np.ptp(features, axis=0).max() > 0.1 * np.abs(features).max()
    assert _difference(backbone.model(images), features) < 1e-4


def _keras_epsilon(monkeypatch):
    monkeypatch.setattr(torchvision, "_EPSILON", 1.001e-5)


def _keras_stride(monkeypatch):
    import keras

    plain = keras.layers.Conv2D

    def moved(filters, kernel_size, strides=1, **kwargs):
        # From the 3x3 convolution of a block to the one before it, in both of which names tell the place.
        if kwargs["name"] == "conv3_block1_1_conv":
            strides = 2
        elif kwargs["name"] == "conv3_block1_2_conv":
            strides = 1
        return plain(filters, kernel_size, strides, **kwargs)

    monkeypatch.setattr(keras.layers, "Conv2D", moved)


def _keras_flattening(monkeypatch):
    from piggyback_tf.backbones import tensor_weights

    plain = tensor_weights._as_keras
    monkeypatch.setattr(tensor_weights, "_as_keras", lambda value, shape, _: plain(value, shape, None))


def _bgr(monkeypatch):
    plain = torchvision._images

    def flipped(*arguments):
        import keras

        images, x = plain(*arguments)
        return images, keras.ops.flip(x, axis=-1)

    monkeypatch.setattr(torchvision, "_images", flipped)


MISTAKES = {
    "epsilon": (_keras_epsilon, ("vgg with batch norm", "resnet", "densenet")),
    "stride": (_keras_stride, ("resnet",)),
    "flattening": (_keras_flattening, ("vgg of timm", "vgg of torchvision", "vgg with batch norm")),
    "channels": (_bgr, tuple(SMALL)),
}


@pytest.mark.parametrize(("mistake", "name"), [(m, name) for m, (_, names) in MISTAKES.items() for name in names])
def test_what_keras_does_otherwise_would_be_seen(mistake, name, tmp_path, monkeypatch):
    tensors, images, features = _computed(name)
    MISTAKES[mistake][0](monkeypatch)
    backbone = _loaded(name, _write(tmp_path, tensors))
    assert _difference(backbone.model(images), features) > 1e-4


def test_the_scaling_is_that_of_the_weights(tmp_path):
    tensors, _, _ = _computed("resnet")
    first = _loaded("resnet", _write(tmp_path, tensors))
    other = {**CONFIG, "pretrained_cfg": {"mean": MEAN, "std": (0.2, 0.25, 0.31)}}
    second = _loaded("resnet", _write(tmp_path, tensors, other))
    assert first.hash == second.hash
    assert not first.structure.is_like(second.structure)


def test_half_precision_and_names_of_the_first_densenets(tmp_path):
    tensors, _, _ = _computed("densenet")
    old = {re.sub(r"(denselayer\d+\.(norm|conv))(\d)", r"\1.\3", name): value for name, value in tensors.items()}
    assert old.keys() != tensors.keys()
    half = {name: value.astype("float16") for name, value in old.items()}
    backbone = _loaded("densenet", _write(tmp_path, half))
    kernel = backbone.model.get_layer("conv2_block1_1_conv").kernel.numpy()
    written = half["features.denseblock1.denselayer1.conv.1.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, written.astype("float32"))


def _without(name: str):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def _with(**changes):
    return lambda tensors: {**tensors, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("layer1.0.conv2.weight"), "no tensor 'layer1.0.conv2.weight' in the file, for the layer 'conv2_bl"),
        (_without("bn1.running_var"), "no tensor 'bn1.running_var' in the file, for the layer 'conv1_bn'"),
        (_with(layer9__weight=np.zeros(3, "float32")), "the network has no place for 'layer9.weight'"),
        (_with(conv1__bias=np.zeros(4, "float32")), "the network has no place for 'conv1.bias'"),
        (_with(bn1__bias=np.zeros(5, "float32")), r"'bn1.bias' is F32\[5\] in the file, and should be .* \[4\]"),
        (_with(bn1__bias=np.zeros(4, "int32")), r"'bn1.bias' is I32\[4\] in the file, and should be F32 or F16"),
        (_with(bn1__bias=np.full(4, np.nan, "float32")), "not a number, for 'conv1_bn/beta'"),
    ],
)
def test_tensors_that_do_not_fit(change, message, tmp_path):
    tensors, _, _ = _computed("resnet")
    with pytest.raises(WeightsError, match=message):
        _loaded("resnet", _write(tmp_path, change(tensors)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "has no pretrained_cfg. It should be such as .*0.485"),
        ({"architecture": "small"}, "has no pretrained_cfg"),
        (
            {**CONFIG, "architecture": "resnet101"},
            "is of architecture 'resnet101', and 'small' takes weights of 'small'",
        ),
        ({**CONFIG, "model_args": {"in_chans": 3, "act_layer": "silu"}}, "another way than usual.*act_layer"),
        ({**CONFIG, "model_args": {"in_chans": 1}}, "another way than usual"),
        ({"pretrained_cfg": {"mean": MEAN}}, "needs in pretrained_cfg, as std, three numbers .* not None"),
        ({"pretrained_cfg": {"mean": MEAN, "std": [1, 2]}}, r"three numbers for R, G, B, not \[1, 2\]"),
        ({"pretrained_cfg": {"mean": MEAN, "std": [1, 2, float("nan")]}}, "three numbers"),
        ({"pretrained_cfg": {"mean": MEAN, "std": [1, 0, 2]}}, "not above 0"),
    ],
)
def test_a_config_that_does_not_fit(config, message, tmp_path):
    path = _write(tmp_path, {}, config)
    with pytest.raises(WeightsError, match=message):
        in_file(path, "small", SMALL["resnet"].layout)


def test_usual_arguments_of_timm_are_no_other_network(tmp_path):
    tensors, _, _ = _computed("resnet")
    usual = {"in_chans": 3, "num_classes": 1000, "global_pool": "avg"}
    path = _write(tmp_path, tensors, {**CONFIG, "model_args": usual})
    assert in_file(path, "small", SMALL["resnet"].layout).statistics.mean == MEAN


def test_files_that_are_none(tmp_path):
    layout = SMALL["resnet"].layout
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(WeightsError, match='no \'config.json\' beside the weights file .*"architecture": "small"'):
        in_file(path, "small", layout)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="config.json of the weights 'model.safetensors' cannot be read"):
        in_file(path, "small", layout)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(WeightsError, match="no safetensors file, or it is truncated"):
        in_file(path, "small", layout)


def test_pickles_are_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    import pickle

    for name in ("resnet50_places365.pth.tar", "net.pth", "net.pt", "pytorch_model.bin", "net.ckpt", "net.pkl"):
        path = tmp_path / name
        path.write_bytes(pickle.dumps(Bomb()))
        with pytest.raises(WeightsError, match="is not opened: by its name it is a pickle") as caught:
            load_backbone("resnet50_torch", weights=path)
        assert "torch.load(" in str(caught.value) and "weights_only=True" in str(caught.value)
        assert '"pretrained_cfg"' in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "architecture": "resnet50"}))
    path.rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_backbone("resnet50_torch", weights=tmp_path / "model.safetensors")
    assert not (tmp_path / "opened").exists()


def test_networks_of_keras_take_no_tensors(tmp_path):
    path = _write(tmp_path, {})
    for weights in (path, "hf://timm/resnet50.tv_in1k"):
        with pytest.raises(WeightsError, match="'resnet50' takes no weights from tensors.*resnet50_torch, vgg16_bn"):
            load_backbone("resnet50", weights=weights)


def test_tensors_are_checked_before_keras_is_loaded(tmp_path):
    program = """
import sys
from piggyback_tf.backbones.registry import check_request
try:
    check_request("resnet50_torch", sys.argv[1], None)
except ValueError as error:
    print(error)
print([name for name in ("keras", "tensorflow") if name in sys.modules])
"""
    path = _write(tmp_path, {"conv1.weight": np.zeros(3, "float32")}, {**CONFIG, "architecture": "resnet50"})
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert "there is no tensor 'bn1.weight'" in done.stdout and done.stdout.endswith("[]\n")


def test_layouts_name_every_layer_with_weights():
    import keras

    for name in list_backbones():
        entry = get_entry(name)
        if entry.layout is None:
            continue
        with keras.StatelessScope(initialize_variables=False):
            model = entry.build(entry.image_size)
        assert {layer.name for layer in model.layers if layer.weights} == {*entry.layout.layers}
        assert entry.weights == (f"hf://timm/{entry.layout.architecture}.tv_in1k", "random")


@pytest.mark.parametrize("batch_norm", [False, True])
def test_fcn_heads_find_their_layers(batch_norm):
    model = build_torch_vgg(96, name="narrow", batch_norm=batch_norm, widths=WIDTHS, features=9)
    _, endpoints = network_for(Backbone.from_model(model), HeadSpec("fcn8", 3, 0, (96, 96)))
    assert [endpoint.layer for endpoint in endpoints] == ["block3_pool", "block4_pool", "fc2_dropout"]


def test_the_wide_resnet_computes_what_its_description_says():
    torch = numpy_networks.Torch()
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    x = numpy_networks.scaled(images, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = numpy_networks.wide_resnet(torch, x, blocks=2, factor=1)
    model = build_wide_resnet(64, depth=16, factor=1)
    for layer in model.layers:
        if layer.weights:
            found = [
                torch.tensors[f"{layer.name}.{name}"]
                for name in ("weight", "bias", "running_mean", "running_var")
                if f"{layer.name}.{name}" in torch.tensors
            ]
            layer.set_weights([value.transpose(2, 3, 1, 0) if value.ndim == 4 else value for value in found])
    assert _difference(model(images), expected) < 1e-4


def test_the_wide_resnet_is_that_of_depth_28_and_factor_4():
    import keras

    with keras.StatelessScope(initialize_variables=False):
        model = get_entry("wrn28_4").build(64)
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert len(convolutions) == 28
    assert [(layer.filters, layer.strides[0]) for layer in convolutions if layer.name.endswith("_shortcut")] == [
        (64, 2),
        (128, 2),
        (256, 2),
    ]
    assert not any(layer.use_bias for layer in convolutions)
    assert model.output_shape == (None, 256)
    assert sum(int(np.prod(layer.kernel.shape)) for layer in convolutions) == 5_839_280
