"""Networks of keras.applications, small and with random weights, through every loader."""

import numpy as np
import pytest

from export.saved_model import export_saved_model
from export.servable.options import ExportOptions
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import decode_image, parse_augment
from piggyback_tf.packs import TaskBank
from tests.export.helpers import LOADERS, call, encode, picture, texts
from tests.packs.helpers import pack_of, trained_model

SIZE = 32
VARIANTS = ({}, {"kind": "ternary"}, {"norm": "task"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet", "mobilenet_v2", "resnet50", "densenet121", "efficientnet_b0"])
def test_every_network_through_every_loader(name, tmp_path):
    backbone = load_backbone(name, weights="random", image_size=SIZE)
    bank, packs = TaskBank(backbone), []
    for classes, variant in enumerate(VARIANTS, start=2):
        model = trained_model(backbone, classes=classes, seed=classes, **variant)
        packs.append(pack_of(model, backbone, f"task {classes}", classes))
        bank.add(packs[-1])
    tasks = np.array([2, 0, 1, 1], np.int32)
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
