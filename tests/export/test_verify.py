"""The commands, as a user runs them."""

import dataclasses
import shutil

import pytest

from export.servable.compare import Comparison, compare
from piggyback_tf.backbones import load_backbone
from piggyback_tf.packs import TaskBank
from tests.export.helpers import encode, picture
from tests.forked import run_forked
from tests.image_files import profile
from tests.packs.helpers import pack_of, trained_model


def _run(module, *arguments):
    run = run_forked("-m", module, *arguments)
    return run.returncode, run.stdout.strip(), run.stderr


@pytest.fixture(scope="module", name="files")
def _files(tmp_path_factory):
    """Two packs for the network that ships with the package, and a folder of images."""
    folder, backbone = tmp_path_factory.mktemp("commands"), load_backbone("shapesnet")
    for classes, kind in ((2, "binary"), (3, "ternary")):
        model = trained_model(backbone, classes=classes, kind=kind)
        pack_of(model, backbone, kind, classes).save(folder / f"{kind}.task.safetensors")
    (folder / "images" / "some").mkdir(parents=True)
    for index, kind in enumerate(("JPEG", "PNG", "BMP")):
        data = encode(picture(40 + 9 * index, 50, seed=index), kind)
        (folder / "images" / "some" / f"{index}.{kind.lower()}").write_bytes(data)
    # What file servers leave is none.
    (folder / "images" / "@eaDir").mkdir()
    for name in ("some/._0.jpeg", "@eaDir/0.jpeg"):
        (folder / "images" / name).write_bytes(b"junk")
    return folder


def test_an_export_is_written_added_to_and_verified(files, tmp_path):
    pack = files / "binary.task.safetensors", files / "ternary.task.safetensors"
    status, printed, errors = _run("export.saved_model", f"--packs={pack[0]}", f"--output={tmp_path}", "--top_k=3")
    assert (status, printed) == (0, str(tmp_path / "1")), errors
    status, printed, errors = _run(
        "export.saved_model", f"--packs={pack[1]}", f"--add_to={tmp_path}/1", "--cache=packed"
    )
    assert (status, printed) == (0, str(tmp_path / "2")), errors
    status, printed, errors = _run("export.verify", tmp_path, f"--packs={files}", f"--images={files}/images")
    assert status == 0, errors
    lines = printed.splitlines()
    assert lines[0].startswith(f"{tmp_path}/2: 2 tasks, 3 images; loaded in ")
    assert [line.split(":")[0].strip() for line in lines[1:3]] == ["binary", "ternary"]
    assert lines[-1] == "equal to 1e-5"
    images = shutil.copytree(files / "images", tmp_path.parent / "some_broken")
    (images / "cut.png").write_bytes((images / "some" / "1.png").read_bytes()[:90])
    broken = ("export.verify", tmp_path, f"--packs={files}", f"--images={images}")
    status, _, errors = _run(*broken)
    assert status == 2 and "cut.png" in errors and "--skip_broken_images leaves it out" in errors
    status, printed, errors = _run(*broken, "--skip_broken_images")
    assert (status, printed.splitlines()[-1]) == (0, "equal to 1e-5"), errors
    assert "cut.png" in printed and ": 2 tasks, 3 images" in printed
    fewer = ("export.verify", tmp_path, f"--packs={files}", f"--images={files}/images", "--min_agreement=0.9")
    status, _, errors = _run(*fewer)
    assert (status, errors.splitlines()[-1][:53]) == (2, "export.verify: --min_agreement is for a .tflite; what")
    status, _, errors = _run("export.saved_model", f"--packs={pack[1]}", f"--add_to={tmp_path}/2")
    assert status == 2
    assert "There are two tasks named 'ternary'" in errors.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "with_mask"]


def test_a_difference_is_found(small, tmp_path):
    image = tmp_path / "image.png"
    image.write_bytes(encode(picture(12, 12), "PNG"))
    model = small.loaded()
    wide = tmp_path / "wide.png"
    wide.write_bytes(encode(picture(12, 12), "PNG", icc_profile=profile()))
    found = compare(model, small.bank, "binary", [image, wide])
    assert found.good
    assert found.refused == 1
    # Nothing was compared.
    assert not compare(model, small.bank, "binary", [wide]).good
    # Another task under its name.
    bank = TaskBank(small.backbone).add(
        dataclasses.replace(small.packs[1], task="binary", class_names=["class 0", "class 1", "class 2"])
    )
    found = compare(model, bank, "binary", [image])
    assert not found.good
    assert found.pixels > 1e-3


@pytest.mark.parametrize("change", [{"pixels": 2e-5}, {"files": 2e-5}, {"labels": False}])
def test_what_counts_as_good(change):
    times = {"export_ms": 1.0, "bank_ms": 1.0}
    fields = {"task": "a", "pixels": 1e-6, "files": None, "labels": True, "refused": 0, **times}
    assert Comparison(**fields).good
    assert not Comparison(**fields | change).good
