"""Bases of small tasks for a device, each made once."""

import functools
import types

import numpy as np
import pytest

from export.lite import patch
from export.lite.options import LiteOptions
from piggyback_tf.packs import TaskBank
from tests.packs.helpers import packs_of_all_kinds, small_backbone


def noise(size, count=6, seed=1):
    """Returns images, float32 `[count, size, size, 3]`."""
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size, 3)).astype(np.float32)


@pytest.fixture(scope="session", name="patched")
def _patched(tmp_path_factory):
    """A function of a quantisation and of `max_classes` that returns an export, with its backbone, packs and bank."""
    backbone = small_backbone()
    packs, bank = packs_of_all_kinds(backbone), TaskBank(backbone)
    for pack in packs:
        bank.add(pack)

    @functools.cache
    def make(quantize, max_classes=0):
        folder = tmp_path_factory.mktemp("litert") / f"{quantize}{max_classes}"
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(quantize=quantize, max_classes=max_classes, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(patch, "representative_images", lambda spec, packs, count: [noise(8, 32) for _ in packs])
            patch.export_patch(backbone, packs, folder, options)
        return types.SimpleNamespace(folder=folder, backbone=backbone, packs=packs, bank=bank)

    return make
