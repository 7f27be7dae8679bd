"""Bases of small tasks for a device, each made once."""

import functools
import types

import numpy as np
import pytest

from export.lite.options import LiteOptions
from export.lite.patch import write
from piggyback_tf.backbones import load_backbone
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import packs_of_all_kinds, small_backbone


def noise(size, count=6, seed=1):
    """Returns images, float32 `[count, size, size, 3]`."""
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="session", name="patched")
def _patched(tmp_path_factory):
    """A function of a quantisation and of `max_classes` that returns an export, with its backbone, packs and bank.

    With dynamic ranges it is one of the network that ships with the package, whose filters are int8 then: those of the
    small one have less than 1024 elements and stay float32, which is what `shipped=False` is for.
    """

    @functools.cache
    def network(shipped):
        if shipped:
            backbone = load_backbone("shapesnet")
            packs = packs_of_all_kinds(backbone, ["stem_conv", "block2_*"])
        else:
            backbone = small_backbone()
            packs = packs_of_all_kinds(backbone)
        bank = TaskBank(backbone)
        for pack in packs:
            bank.add(pack)
        return backbone, packs, bank

    @functools.cache
    def make(quantize, max_classes=0, shipped=None):
        backbone, packs, bank = network(quantize == "dynamic" if shipped is None else shipped)
        size = backbone.image_size
        folder = tmp_path_factory.mktemp("litert") / f"{quantize}{max_classes}{backbone.name}"
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(quantize=quantize, max_classes=max_classes, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(write, "representative_images", lambda spec, packs, count: [noise(size, 32) for _ in packs])
            write.export_patch(backbone, packs, folder, options)
        return types.SimpleNamespace(folder=folder, backbone=backbone, packs=packs, bank=bank, size=size)

    return make
