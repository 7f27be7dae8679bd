"""The design `plain`: a model of one task alone, which other programs can use."""

import dataclasses
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from export.lite import plain
from export.lite.compare import PlainExport, compare_lite, open_export, promise
from export.lite.inputs.run import load_model
from export.lite.options import LiteOptions
from export.lite.plain import export_plain
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.packs import PackError
from tests.export.helpers import encode, picture
from tests.export.lite.conftest import noise
from tests.export.lite.metadata import read_metadata
from tests.packs.helpers import pack_of, small_backbone, trained_model


@pytest.fixture(scope="module", name="models")
def _models(patched, tmp_path_factory):
    """A function of a quantisation that returns the files of models of three tasks."""

    def make(quantize):
        export, folder = patched("none"), tmp_path_factory.mktemp("plain") / "out"
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(design="plain", quantize=quantize, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            images = [noise(export.size, 32)] * 3
            patches.setattr(plain, "representative_images", lambda spec, packs, count: images)
            return export_plain(export.backbone, export.packs[:3], folder, options)

    return make


@pytest.mark.parametrize("quantize", ["none", "float16", "dynamic", "int8"])
def test_each_task_has_a_model_that_answers_as_the_bank(patched, models, quantize, tmp_path):
    export, files = patched("none"), []
    for index in range(8):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(encode(picture(9, 9, seed=index), "PNG"))
    paths = models(quantize)
    assert [path.name for path in paths] == [f"{pack.task}.tflite" for pack in export.packs[:3]]
    loaded = open_export(paths[0], export.backbone)
    assert (loaded.design, loaded.quantize) == ("plain", quantize)
    assert "constant" not in promise(loaded)
    for pack, path in zip(export.packs, paths, strict=False):
        found = compare_lite(loaded, export.bank, pack, files)
        assert found.good
        assert found.difference < (1e-5 if quantize == "none" else 0.1)
        interpreter = Interpreter(model_path=str(path))
        ((given,), (returned,)) = interpreter.get_input_details(), interpreter.get_output_details()
        assert (given["shape"].tolist(), given["dtype"]) == ([1, export.size, export.size, 3], np.float32)
        assert (returned["shape"].tolist(), returned["dtype"]) == ([1, len(pack.class_names)], np.float32)
        types = {tensor["dtype"] for tensor in interpreter.get_tensor_details()}
        assert (np.int8 in types) == (quantize == "int8")
        assert (np.float16 in types) == (quantize == "float16")


def test_other_programs_find_labels_and_know_what_to_do_with_pixels(patched, models):
    """What MediaPipe's image classifier asks for, at the places of the published schema."""
    pack, path = patched("none").packs[0], models("none")[0]
    (graph,) = read_metadata(path.read_bytes()).tables(3)
    ((image,), (output,)) = graph.tables(2), graph.tables(3)
    (process,) = image.tables(4)
    assert (process.byte(0), process.table(1).floats(0), process.table(1).floats(1)) == (1, [0.0], [1.0])
    (file,) = output.tables(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)
    assert (output.table(5).floats(0), output.table(5).floats(1)) == ([1.0], [0.0])
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == pack.class_names


def test_equal_exports_give_equal_bytes(models):
    first, second = models("none"), models("none")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_what_is_no_plain_model_is_refused(patched, models, tmp_path):
    export, path = patched("none"), models("none")[0]
    with pytest.raises(PackError, match="is of design 'plain', which takes no masks as inputs"):
        load_model(path)
    with pytest.raises(PackError, match=r"was made of another base: hash \w{12}\.\.\., and this is"):
        PlainExport(path, small_backbone(seed=5))
    several = dataclasses.replace(export.packs[0], class_names=["a\nb", "c"])
    with pytest.raises(ExportError, match=r"Class 'a\\nb' of task 'binary' has several lines"):
        export_plain(export.backbone, [several], tmp_path / "out", LiteOptions(design="plain"))
    for options, message in (
        ({"max_classes": 9}, "--max_classes does not go with --design=plain"),
        ({"compress": True}, "--compress does not go with --design=plain"),
        ({"representative_data": "digits"}, "--representative_data is for --quantize=int8"),
    ):
        with pytest.raises(ExportError, match=message):
            export_litert(export.backbone, export.packs, tmp_path / "out", LiteOptions(design="plain", **options))
    with pytest.raises(ExportError, match="at least one task"):
        export_litert(export.backbone, [], tmp_path / "out", LiteOptions(design="plain"))
    assert not (tmp_path / "out").exists()


def test_a_model_that_answers_otherwise_is_not_written(patched, tmp_path, monkeypatch):
    export = patched("none")
    other = pack_of(trained_model(export.backbone, classes=2), export.backbone, "binary", 2)
    real = plain.own_weights
    monkeypatch.setattr(plain, "own_weights", lambda network, pack: real(network, other))
    with pytest.raises(ExportError, match="gives other probabilities"):
        export_plain(export.backbone, export.packs[:1], tmp_path / "out", LiteOptions(design="plain"))
    assert not (tmp_path / "out").exists()
