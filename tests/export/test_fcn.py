"""Fully convolutional heads in a SavedModel: the base's dense layers as convolutions, and skips."""

import pytest

from export.saved_model import export_saved_model
from export.servable.options import ExportOptions
from tests.export.fcn import IMAGES, SHAPES
from tests.export.helpers import call, texts
from tests.export.segments import assert_same_labels


@pytest.mark.parametrize(
    ("kinds", "cache", "loader"),
    [
        (["fcn8"], "packed", "v2"),
        pytest.param(["fcn8"], "unpacked", "v2", marks=pytest.mark.slow),
        pytest.param(list(SHAPES), "packed", "c_api", marks=pytest.mark.slow),
        pytest.param(list(SHAPES), "unpacked", "c_api", marks=pytest.mark.slow),
    ],
)
def test_label_maps_are_those_of_the_trained_models(fcn, kinds, cache, loader, tmp_path):
    folder = export_saved_model(fcn.backbone, [fcn.packs[kind] for kind in kinds], tmp_path, ExportOptions(cache=cache))
    calls = []
    for kind in kinds:
        height, width = SHAPES[kind]
        named = texts(*[kind] * IMAGES)
        calls.append((f"segment_{height}x{width}", {"images": fcn.images[kind], "task": named}))
    for kind, found in zip(kinds, call(loader, folder, calls), strict=True):
        assert found["task_ok"].all() and found["image_ok"].all()
        assert_same_labels(found["labels"], fcn.logits[kind])
