"""What counts as a good export, and that a wrong one is found."""

import dataclasses

import numpy as np
import pytest

from export.edge.piggyback_edge import Base, Model, Task
from export.lite.check import check_constants
from export.lite.compare import LiteComparison, PatchedExport, compare_lite
from export.lite.patch import read_base
from export.servable.folder import ExportError
from piggyback_tf.packs import TaskBank
from piggyback_tf.packs.bits import MaskBits
from tests.export.helpers import encode, picture


def _flipped(pack, path):
    """Returns a pack with one bit of the mask of the heaviest weight of a kernel turned."""
    mask = pack.masks[path]
    packed = mask.packed.copy()
    packed[:, 0] ^= 1
    return dataclasses.replace(pack, masks={**pack.masks, path: MaskBits(mask.shape, packed)})


@pytest.mark.parametrize("quantize", ["dynamic", "int8"])
def test_a_weight_that_is_wrong_is_found_in_integers(patched, quantize):
    export = patched(quantize)
    base, pack = read_base(export.backbone, export.folder / "base.tflite"), export.packs[0]
    model = Model(Base(bytes(base.file.data), base.manifest))
    model.install(Task.load(export.folder / f"{pack.task}.edge", base.manifest))
    check_constants(base, model.data, pack)
    with pytest.raises(ExportError, match="The filter 'fc/kernel' of task 'binary' is another one"):
        check_constants(base, model.data, _flipped(pack, "fc/kernel"))


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_pack_of_another_task_is_found(patched, tmp_path, quantize):
    export, files = patched(quantize), []
    pack = export.packs[0]
    for index in range(8):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(encode(picture(9, 9, seed=index), "PNG"))
    loaded = PatchedExport(export.folder / "base.tflite", export.backbone)
    found = compare_lite(loaded, export.bank, pack, files, batch_size=3)
    assert (found.good, found.fault, found.error, found.images) == (True, None, None, 8)
    other = dataclasses.replace(
        _flipped(pack, "fc/kernel"), head={**pack.head, "kernel": -pack.head["kernel"], "bias": -pack.head["bias"]}
    )
    bad = compare_lite(loaded, TaskBank(export.backbone).add(other), other, files)
    assert not bad.good
    assert bad.difference > 0.1


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"agreement": 0.999}, False),
        ({"agreement": 0.996, "quantize": "float16"}, True),
        ({"agreement": 0.99, "quantize": "float16"}, False),
        ({"agreement": 0.5, "quantize": "int8"}, True),
        ({"fault": "a weight"}, False),
        ({"fault": "a weight", "quantize": "int8"}, False),
    ],
)
def test_what_counts_as_good(change, good):
    values = dict.fromkeys(("change_ms", "predict_ms", "difference"), 0.1)
    fields = {"task": "a", "quantize": "none", "images": 9, "agreement": 1.0, "error": None, "bank_error": None}
    assert LiteComparison(**{**fields, **values, "task_bytes": 9, "fault": None} | change).good is good


def test_what_is_no_number_is_a_fault(patched, tmp_path, monkeypatch):
    export = patched("int8")
    file = tmp_path / "0.png"
    file.write_bytes(encode(picture(9, 9), "PNG"))
    loaded = PatchedExport(export.folder / "base.tflite", export.backbone)
    monkeypatch.setattr(Task, "probabilities", lambda task, output: np.full((1, len(task.labels)), np.nan))
    found = compare_lite(loaded, export.bank, export.packs[0], [file])
    assert found.fault == "probabilities are no numbers"
    assert not found.good
