"""What counts as a good export, and that a wrong one is found."""

import types

import numpy as np
import pytest

from export.edge.piggyback_edge import Base, Model, Task
from export.lite.compare import MIN_AGREEMENT, LiteComparison, PatchedExport, compare_lite, describe
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.checks import check_constants
from export.lite.patch.write import read_base
from export.shared.errors import ExportError
from piggyback_tf.backbones import load_backbone
from piggyback_tf.packs import TaskBank
from piggyback_tf.packs.bits import MaskBits
from tests.export.helpers import encode, picture
from tests.forked import run_forked
from tests.packs.helpers import pack_of, trained_model, with_arrays


def _flipped(pack, path):
    """Returns a pack with one bit of the mask of the heaviest weight of a kernel turned."""
    mask = pack.masks[path]
    packed = mask.packed.copy()
    packed[:, 0] ^= 1
    return with_arrays(pack, masks={**pack.masks, path: MaskBits(mask.shape, packed)})


@pytest.mark.parametrize("quantize", ["dynamic", "int8"])
def test_a_weight_that_is_wrong_is_found_in_integers(patched, quantize):
    export = patched(quantize)
    base, pack = read_base(export.backbone, export.folder / "base.tflite"), export.packs[0]
    model = Model(Base(bytes(base.file.data), base.manifest))
    model.install(Task.load(export.folder / f"{pack.task}.edge", base.manifest))
    check_constants(base, model.data, pack)
    path = next(reversed(pack.masks))
    [entry] = [
        base.manifest.entries[place] for place in base.manifest.filters if base.slots[place].constant.kernel == path
    ]
    assert entry.dtype == np.int8
    with pytest.raises(ExportError, match=f"The filter '{path}' of task 'binary' is another one"):
        check_constants(base, model.data, _flipped(pack, path))


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
    other = with_arrays(
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
        ({"agreement": 0.95, "quantize": "int8"}, True),
        ({"agreement": 0.95, "quantize": "int8", "min_agreement": 0.96}, False),
        ({"agreement": 0.11, "quantize": "int8"}, False),
        ({"agreement": 0.89, "quantize": "dynamic"}, False),
        ({"agreement": 0.89, "quantize": "dynamic", "min_agreement": 0.8}, True),
        ({"fault": "a weight"}, False),
        ({"fault": "a weight", "quantize": "int8"}, False),
    ],
)
def test_what_counts_as_good(change, good):
    values = dict.fromkeys(("change_ms", "predict_ms", "difference"), 0.1)
    fields = {"task": "a", "quantize": "none", "images": 9, "agreement": 1.0, "error": None, "bank_error": None}
    fields |= {"min_agreement": MIN_AGREEMENT[change.get("quantize", "none")], "task_bytes": 9, "fault": None}
    found = LiteComparison(**fields | values | change)
    assert found.good is good
    assert ("TOO FEW" in describe(found)) == (found.agreement < found.min_agreement)


def test_what_is_no_number_is_a_fault(patched, tmp_path, monkeypatch):
    export = patched("int8")
    file = tmp_path / "0.png"
    file.write_bytes(encode(picture(9, 9), "PNG"))
    loaded = PatchedExport(export.folder / "base.tflite", export.backbone)
    monkeypatch.setattr(Task, "probabilities", lambda task, output, model: np.full((1, len(task.labels)), np.nan))
    found = compare_lite(loaded, export.bank, export.packs[0], [file])
    assert found.fault == "probabilities are no numbers"
    assert not found.good


@pytest.fixture(scope="module", name="separable")
def _separable(tmp_path_factory):
    """A task on the shipped network whose bank names each of ten images, and their files in folders of classes."""
    backbone, folder = load_backbone("shapesnet"), tmp_path_factory.mktemp("separable")
    size, files = backbone.image_size, []
    images = np.stack([picture(size, size, seed=seed) for seed in range(10)]).astype(np.float32)
    for number, image in enumerate(images):
        files.append(folder / f"class {number}" / "0.png")
        files[-1].parent.mkdir()
        files[-1].write_bytes(encode(image.astype(np.uint8), "PNG"))
    pack = pack_of(trained_model(backbone, classes=10, kind="none"), backbone, classes=10)
    # The logit of a class is minus the squared distance to its image's features.
    features = np.asarray(backbone.model(images))
    pack = with_arrays(pack, head={"kernel": 2 * features.T, "bias": -(features**2).sum(axis=1)})
    return types.SimpleNamespace(backbone=backbone, pack=pack, images=images, files=files)


@pytest.mark.parametrize("ruined", [False, True])
def test_an_int8_base_whose_ranges_do_not_hold_a_task_is_not_good(separable, ruined, tmp_path, monkeypatch):
    """Its constants are those of the task, and its answers are not."""
    images = separable.images * (0 if ruined else 1)
    monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [images for _ in packs])
    options = LiteOptions(quantize="int8", representative_data="images")
    write.export_patch(separable.backbone, [separable.pack], tmp_path / "out", options)
    export = PatchedExport(tmp_path / "out" / "base.tflite", separable.backbone)
    bank = TaskBank(separable.backbone).add(separable.pack)
    found = compare_lite(export, bank, separable.pack, separable.files)
    assert (found.fault, found.bank_error) == (None, 0)
    assert found.good is not ruined
    assert found.agreement < 0.5 if ruined else found.agreement == 1
    assert compare_lite(export, bank, separable.pack, separable.files, min_agreement=0.01).good


def test_the_command_fails_for_a_ruined_base(separable, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [0 * separable.images])
    options = LiteOptions(quantize="int8", representative_data="images")
    write.export_patch(separable.backbone, [separable.pack], tmp_path / "out", options)
    separable.pack.save(tmp_path / "birds.task.safetensors")
    packs, images = f"--packs={tmp_path}/birds.task.safetensors", f"--images={separable.files[0].parents[1]}"
    done = run_forked("-m", "export.verify", tmp_path / "out" / "base.tflite", packs, images)
    assert done.returncode == 1, done.stderr
    assert "(TOO FEW: below 90.0%)" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("does NOT hold: top-1 agrees on at least 90.0%, and every constant")
