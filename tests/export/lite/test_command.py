"""The commands, as a user runs them."""

import re
from pathlib import Path

import pytest

from export.lite.options import LiteOptions
from export.lite.patch.calibrate import Saturation
from export.lite.patch.write import Added, add_patches
from export.litert import _describe
from export.shared.errors import ExportError
from piggyback_tf.backbones import load_backbone
from piggyback_tf.head_spec import HeadSpec
from tests.export.helpers import encode, picture
from tests.forked import ROOT, run_forked
from tests.packs.helpers import pack_of, trained_model
from tests.packs.test_segments import segments_model, segments_pack


def _run(*arguments, cwd=ROOT):
    run = run_forked(*arguments, cwd=cwd)
    return run.returncode, run.stdout.strip(), run.stderr


@pytest.fixture(name="files")
def _files(tmp_path):
    """Two packs for the network that ships with the package, and images in folders of classes."""
    backbone = load_backbone("shapesnet")
    for classes, kind in ((2, "binary"), (3, "ternary")):
        pack = pack_of(trained_model(backbone, classes=classes, kind=kind), backbone, kind, classes)
        pack.save(tmp_path / f"{kind}.task.safetensors")
    for index in range(4):
        folder = tmp_path / "images" / "train" / f"class {index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(encode(picture(40 + 9 * index, 50, seed=index), "PNG"))
    return tmp_path


@pytest.mark.slow
def test_an_int8_base_is_written_added_to_verified_and_used(files):
    out, packs = files / "out", [files / f"{kind}.task.safetensors" for kind in ("binary", "ternary")]
    data = f"--representative_data=folder:{files}/images"
    command = ["-m", "export.litert", f"--packs={packs[0]}"]
    status, printed, errors = _run(*command, f"--output={out}", "--quantize=int8", data)
    assert (status, printed) == (0, str(out)), errors
    added = ["-m", "export.litert", f"--packs={packs[1]}", f"--base={out}/base.tflite", "--compress"]
    status, printed, errors = _run(*added)
    assert status == 0, errors
    assert "ranges not checked" in printed
    status, printed, errors = _run(*added, "--quantize=none")
    assert (status, printed) == (2, "")
    assert errors.splitlines()[-1] == "export.litert: --quantize is decided by the base; leave it out with --base."
    # Images for each of several packs.
    each = ["-m", "export.litert", f"--packs={packs[0]},{packs[1]}", f"--base={out}/base.tflite"]
    status, printed, errors = _run(*each, f"{data},folder:{files}/images", f"--output={files}/more")
    assert status == 0, errors
    assert [line for line in printed.splitlines() if line[0] != " "] == [
        f"{files}/more/{path.stem.partition('.')[0]}.edge" for path in packs
    ]
    assert "ranges not checked" not in printed
    verify = ["-m", "export.verify", out / "base.tflite", f"--packs={files}", f"--images={files}/images"]
    status, printed, errors = _run(*verify)
    assert status == 0, (printed, errors)
    lines = printed.splitlines()
    assert "design patch, quantisation int8, 4 images" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["binary", "ternary"]
    assert "top-1 error" in lines[1]
    assert re.fullmatch(r"memory: [\d.]+ (bytes|kB|MB) with a task; on disk [\d.]+ (kB|MB)", lines[3])
    assert (
        lines[-1]
        == "holds: top-1 agrees on at least 90.0%, and every constant is the task's weight to half a step of its scale"
    )
    status, printed, errors = _run("piggyback_edge.py", "verify", "base.tflite", "ternary.edge", cwd=out)
    assert (status, printed) == (0, "base.tflite is whole, and so is the task for it"), errors
    (out / "ternary.edge").unlink()
    status, _, errors = _run(*verify)
    assert status == 2
    assert "There is no file" in errors.splitlines()[-1]


@pytest.mark.slow
def test_label_maps_fit_whatever_size_their_base_had(files):
    """Their images have a size of their own; tasks of classes decide which the base has, in any order of the packs."""
    backbone = load_backbone("shapesnet", image_size=64)
    model = segments_model(backbone, 0, HeadSpec("fpn", 5, 8, (40, 56)))
    roads, classes = files / "roads.task.safetensors", files / "binary.task.safetensors"
    segments_pack(model, backbone, "roads", 5, "resize(40,56)").save(roads)
    for packs, out in (([roads, classes], "both"), ([classes], "classes"), ([roads], "maps")):
        output = files / out
        named = f"--packs={','.join(map(str, packs))}"
        status, _, errors = _run("-m", "export.litert", named, f"--output={output}")
        assert status == 0, errors
        added = ["-m", "export.litert", f"--packs={roads}", f"--base={output}/base.tflite"]
        status, _, errors = _run(*added)
        if out == "classes":
            assert status == 2
            assert "The base answers by the signatures serving_default. Export a base with this" in errors
            continue
        assert status == 0, errors
        images = f"--images={files}/images"
        verify = ["-m", "export.verify", f"{output}/base.tflite", f"--packs={roads}", images]
        status, printed, errors = _run(*verify)
        assert status == 0, (printed, errors)
    served = ["-m", "export.saved_model", f"--packs={roads},{classes}", f"--output={files}/served"]
    status, _, errors = _run(*served)
    assert status == 0, errors
    asked = ["-m", "piggyback_tf", "predict", str(roads), f"{files}/images/train/class 0"]
    status, _, errors = _run(*asked, f"--packs={classes}", f"--results={files}/answers")
    assert status == 0, errors
    # Python says which base it has.
    with pytest.raises(ExportError, match="made of a base for images of 32 pixels, and this base is for images of 64"):
        add_patches(backbone, [roads], files / "both/base.tflite", files, LiteOptions())


def test_plain_models_are_written_and_verified(files):
    out, pack = files / "out", files / "binary.task.safetensors"
    status, printed, errors = _run("-m", "export.litert", f"--packs={files}", f"--output={out}", "--design=plain")
    assert (status, printed) == (0, str(out)), errors
    assert sorted(path.name for path in out.iterdir()) == ["binary.tflite", "ternary.tflite"]
    verify = ["-m", "export.verify", out / "ternary.tflite", f"--packs={files}", f"--images={files}/images"]
    status, printed, errors = _run(*verify)
    assert status == 0, (printed, errors)
    lines = printed.splitlines()
    assert "design plain, quantisation none, 4 images" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["binary", "ternary"]
    assert lines[-1] == "holds: top-1 agrees on at least 100.0%"
    status, _, errors = _run("-m", "export.litert", f"--packs={pack}", f"--base={out}/binary.tflite")
    assert status == 2
    assert "this is a model of one task alone; export a new task by itself" in errors.splitlines()[-1]


def test_what_is_said_of_ranges():
    said = [Saturation("a/b;c", (-1.0, 9.0), (-1.0, 7.5))]
    for saturation, quantize, text in (
        (None, "none", []),
        (None, "int8", ["  ranges not checked: without --representative_data it is not known what would saturate"]),
        ([], "int8", ["  no activation leaves the base's ranges on 100 images or fewer"]),
        (said, "int8", ["  SATURATES: a/b reaches [-1, 9], and the base holds [-1, 7.5]"]),
    ):
        assert _describe(Added(Path("x.edge"), quantize, saturation), LiteOptions()) == ["x.edge", *text]


@pytest.mark.slow
@pytest.mark.parametrize("design", ["switch", "input"])
def test_a_model_that_takes_masks_is_written_and_verified(files, design):
    out, images = files / "out", f"--images={files}/images"
    status, printed, errors = _run("-m", "export.litert", f"--packs={files}", f"--output={out}", f"--design={design}")
    assert (status, printed) == (0, str(out)), errors
    verify = ["-m", "export.verify", out / "model.tflite", f"--packs={files}", images]
    status, printed, errors = _run(*verify)
    assert status == 0, (printed, errors)
    lines = printed.splitlines()
    assert f"design {design}, quantisation none, 4 images" in lines[0]
    assert "binary: top-1 agrees on 100.00%" in lines[1]
    assert "bytes" in lines[2]
    assert lines[-1] == "holds: top-1 agrees on at least 100.0%"
    pack, model = files / "binary.task.safetensors", out / "model.tflite"
    added = ["-m", "export.litert", f"--packs={pack}", f"--base={model}"]
    status, printed, errors = _run(*added, f"--output={files}/added")
    name = "binary.inputs.safetensors"
    assert (status, printed) == (0, f"{files}/added/{name}"), errors
    assert (files / "added" / name).read_bytes() == (out / name).read_bytes()
    for flag, reason in (("--compress", "--compress is for --design=patch"), (f"--packs={pack},{pack}", "two tasks")):
        status, _, errors = _run(*added, flag)
        assert status == 2
        assert reason in errors.splitlines()[-1]
