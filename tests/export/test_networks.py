"""Networks of the registry, small and with random weights, through every loader."""

import numpy as np
import pytest

from export.saved_model import export_saved_model
from export.servable.options import ExportOptions
from piggyback_tf.backbones import Backbone, batch_norm_paths, load_backbone
from piggyback_tf.backbones.networks.torchvision import build_torch_vgg
from piggyback_tf.data import decode_image, parse_augment
from piggyback_tf.packs import TaskBank
from tests.export.helpers import LOADERS, call, encode, picture, texts
from tests.packs.helpers import pack_of, trained_model

SIZE = 32
NETWORKS = (
    *("mobilenet", "mobilenet_v2", "resnet50", "densenet121", "efficientnet_b0"),
    *("resnet50_torch", "densenet121_torch", "wrn28_4", "narrow vgg16_bn", "narrow vgg16_torch"),
)
VARIANTS = ({}, {"kind": "ternary"}, {"norm": "task"})


def _backbone(name: str) -> Backbone:
    """Returns a network of the registry, or one with few channels of a kind that takes images of 224 pixels only."""
    if not name.startswith("narrow "):
        return load_backbone(name, weights="random", image_size=SIZE)
    with_norm = name.endswith("_bn")
    model = build_torch_vgg(SIZE, name="narrow", batch_norm=with_norm, widths=(4, 6, 8, 10, 12), features=16)
    return Backbone.from_model(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_through_every_loader(name, tmp_path):
    backbone = _backbone(name)
    bank, packs = TaskBank(backbone), []
    variants = [variant for variant in VARIANTS if "norm" not in variant or batch_norm_paths(backbone.model)]
    for classes, variant in enumerate(variants, start=2):
        model = trained_model(backbone, classes=classes, seed=classes, **variant)
        packs.append(pack_of(model, backbone, f"task {classes}", classes))
        bank.add(packs[-1])
    tasks = np.array([len(packs) - 1, 0, 1, 1], np.int32)
    names = [packs[task].task for task in tasks]
    images = np.random.default_rng(0).integers(0, 256, (len(tasks), SIZE, SIZE, 3), dtype=np.uint8)
    files = [encode(picture(40, 50 + index, seed=index), "JPEG") for index in range(len(tasks))]
    (resize,) = parse_augment(packs[0].eval_augment)
    prepared = np.stack([resize.apply(decode_image(data, "file")) for data in files])
    expected = bank.predict(images, task=names)
    best = bank.top_k(prepared, task=names, k=2)
    calls = [
        ("serving_default", {"images": images, "task": tasks}),
        ("by_name", {"images": images, "task": texts(*names)}),
        ("encoded", {"image_bytes": texts(*files), "task": texts(*names)}),
    ]
    for cache in ("packed", "unpacked"):
        export = export_saved_model(backbone, packs, tmp_path, ExportOptions(cache=cache, top_k=2))
        for loader in LOADERS:
            *pixels, encoded = call(loader, export, calls)
            for found in pixels:
                for row, values in zip(found["probabilities"], expected, strict=True):
                    np.testing.assert_allclose(row[: len(values)], values, rtol=0, atol=1e-5)
            assert encoded["image_ok"].all()
            np.testing.assert_allclose(
                encoded["scores"], [[score for _, score in row] for row in best], rtol=0, atol=1e-5
            )
