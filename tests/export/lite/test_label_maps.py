"""Tasks of pixels: as models of their own, and compared with the bank."""

import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from export.lite import plain
from export.lite.compare import PatchedExport, compare_lite, describe, open_export, promise
from export.lite.judged import JudgedAnswer, judge_of
from export.lite.options import LiteOptions
from export.litert import export_litert
from piggyback_tf.data import at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.packs import TaskBank
from tests.export.helpers import ROOT, encode, picture
from tests.export.lite.metadata import read_metadata
from tests.export.lite.patch.test_kinds import _export, _parts, calibration  # noqa: F401
from tests.packs.helpers import with_arrays
from tests.packs.test_segments import images_of


@pytest.fixture(scope="module", name="photos")
def _photos(tmp_path_factory):
    """Images of several sizes, with label maps beside them."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for number, shape in enumerate(((50, 70), (40, 56), (80, 61))):
        (root / "images" / f"{number}.png").write_bytes(encode(picture(*shape, seed=number), "PNG"))
        labels = rng.choice([0, 1, 2, 3, 4, 255], shape).astype(np.uint8)
        (root / "labels" / f"{number}.png").write_bytes(encode(labels, "PNG"))
    return root


def images_in(photos):
    return sorted((photos / "images").iterdir())


@pytest.mark.parametrize(("quantize", "share"), [("none", 0.0), ("int8", 5e-2)])
def test_a_model_of_its_own_answers_with_label_maps(parts, photos, tmp_path, monkeypatch, quantize, share):
    monkeypatch.setattr(plain, "representative_images", calibration)
    data = "images" if quantize == "int8" else ""
    options = LiteOptions(design="plain", quantize=quantize, representative_data=data)
    export_litert(parts.backbone, [parts.roads], tmp_path / "out", options)
    path = tmp_path / "out" / "roads.tflite"
    run = Interpreter(str(path)).get_signature_runner()
    images = images_of((40, 56), 3)
    found = np.concatenate([run(images=image[None].astype(np.float32))["labels"] for image in images])
    assert found.dtype == np.uint8 and found.shape == (3, 40, 56)
    assert (found != parts.bank.predict(images, task="roads")).mean() <= share
    (graph,) = read_metadata(path.read_bytes()).tables(3)
    (output,) = graph.tables(3)
    (file,) = output.tables(6)
    assert file.text(0) == "labels.txt"
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == parts.roads.class_names
    compared = compare_lite(
        open_export(path, parts.backbone), parts.bank, parts.roads, images_in(photos), min_agreement=1 - 2 * share
    )
    assert compared.good, describe(compared)


def test_an_export_is_compared_pixel_by_pixel(parts, export, photos):
    loaded = PatchedExport(export("none") / "base.tflite", parts.backbone)
    files = images_in(photos)
    found = compare_lite(loaded, parts.bank, parts.roads, files, batch_size=3)
    assert (found.good, found.images, found.fault) == (True, 3, None)
    assert (
        found.min_agreement == 0.9999 and found.error == pytest.approx(found.bank_error, abs=0.1) and found.error > 50
    )
    assert "the class of pixels agrees on" in describe(found) and "100 % less mean IoU" in describe(found)
    assert promise(loaded, [found]) == "the class of pixels agrees on at least 99.99%"
    # Without label maps there is no error.
    alone = files[0].parent.with_name("other")
    alone.mkdir()
    (alone / "0.png").write_bytes(files[0].read_bytes())
    assert compare_lite(loaded, parts.bank, parts.roads, [alone / "0.png"]).error is None
    other = with_arrays(
        parts.roads,
        head={name: -value if name.startswith("logits/") else value for name, value in parts.roads.head.items()},
    )
    bad = compare_lite(loaded, TaskBank(parts.backbone).add(other), other, files)
    assert not bad.good and bad.agreement < 0.9 and "its logit exceeds the next one" in bad.fault


def test_the_example_of_the_document(parts, export, tmp_path):
    """On a device, where there is nothing of this project but what was exported."""
    section = (ROOT / "docs" / "litert.md").read_text().split("\n### From a photo to a label map\n")[1]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section.split("\n#")[0], re.M | re.S)
    folder = tmp_path / "device"
    shutil.copytree(export("none"), folder)
    photo = encode(picture(90, 64), "JPEG")
    (folder / "street.jpg").write_bytes(photo)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    image, operations = decode_image(photo, "street.jpg"), parse_augment(parts.roads.eval_augment)
    (expected,) = parts.bank.predict(apply_operations(operations, image)[None], task="roads")
    with Image.open(folder / "street.labels.png") as found:
        assert np.array_equal(np.asarray(found), at_own_size(expected, operations, (90, 64)))


def test_another_class_is_good_only_where_two_are_as_probable(parts, tmp_path):
    expected = np.zeros((200, 200), np.uint8)
    found = expected.copy()
    found[3, 4] = 2
    for margin, good in ((5e-4, True), (2e-3, False)):
        logits = np.zeros((200, 200, 5), np.float32)
        logits[3, 4, 2] = margin
        judge = judge_of(parts.roads, parse_augment("resize(200,200)"))
        judge.add(tmp_path / "a.png", JudgedAnswer(found, logits), expected)
        assert judge.agreement == 1 - 1 / 40_000 and judge.errors() is None
        assert (judge.fault("none") is None) == good and judge.fault("int8") is None
    assert judge.least("none") == 0.9999
