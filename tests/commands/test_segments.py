"""A task of pixels from data to pictures, by the commands."""

import json

import numpy as np
import pytest
from PIL import Image

from export.lite.kinds import check_is_dense
from export.shared.errors import ExportError
from export.shared.packs import fitting_packs
from piggyback_tf.__main__ import main
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import describe_images, load_data
from piggyback_tf.packs import BaseSpec, TaskPack
from tests.forked import run_forked
from tests.training.test_segments import Rectangles

SIZES = {"train": 12, "val": 6, "test": 4}


@pytest.fixture(scope="module")
def rectangles(tmp_path_factory):
    """Returns a folder of images with label maps, twice as large as they are trained on."""
    root, first = tmp_path_factory.mktemp("data") / "rectangles", 0
    for split, count in SIZES.items():
        source = Rectangles(first, count)
        for kind in ("images", "labels"):
            (root / split / kind).mkdir(parents=True)
        for place in range(count):
            image = np.kron(source.read(place), np.ones((2, 2, 1), np.uint8))
            Image.fromarray(image[..., :3]).save(root / split / "images" / f"{place}.png")
            Image.fromarray(image[..., 3]).save(root / split / "labels" / f"{place}.png")
        first += count
    (root / "classes.txt").write_text("ground\nrectangle\n")
    return root


def train(rectangles, folder, *flags):
    """Runs `train` on the images."""
    usual = {
        "data": f"segmentation:{rectangles}",
        "backbone": "shapesnet",
        "augment_train": "resize(40,56)|flip",
        "augment_eval": "resize(40,56)",
        "epochs": 3,
        "batch_size": 2,
        "head_lr": 3e-2,
        "output_dir": folder,
    }
    return run_forked("train.py", *(f"--{name}={value}" for name, value in usual.items()), *flags)


@pytest.fixture(scope="module")
def run(rectangles, tmp_path_factory):
    """Returns the folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    found = train(rectangles, folder)
    assert found.returncode == 0, found.stderr
    return folder


def test_a_run_says_what_it_found(run):
    metrics = json.loads((run / "metrics.json").read_text())
    (step,) = metrics["methods"]["piggyback"]["steps"]
    measured = step["errors"]["rectangles"]
    assert 0 < measured["mean_iou_error_low"] <= measured["mean_iou_error"] <= measured["mean_iou_error_high"] < 100
    assert set(measured["iou"]) == {"ground", "rectangle"} and measured["images"] == 4
    report = (run / "report.md").read_text()
    assert "Errors are 100 less mean IoU in percent; in brackets: middle 95 % of a bootstrap" in report
    pack = TaskPack.load(run / "rectangles.task.safetensors")
    assert pack.problem == "map" and pack.image_shape == (40, 56)
    assert pack.errors["test"]["mean_iou_error"] == measured["mean_iou_error"] and "iou" not in pack.errors["test"]


def test_evaluate_gives_what_the_training_measured(run, rectangles, capsys):
    pack = str(run / "rectangles.task.safetensors")
    assert main(["evaluate", pack, "--data", f"segmentation:{rectangles}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_iou_error"] == pytest.approx(found["as_of_training"]["mean_iou_error"], abs=1e-9)
    assert main(["evaluate", pack, "--data", f"segmentation:{rectangles}", "--split", "validation"]) == 0
    assert "IoU % of rectangle" in capsys.readouterr().out
    assert main(["evaluate", pack, "--data", "digits"]) == 2
    assert "finds a class for each pixel, and the data 'digits' have a class for each image" in capsys.readouterr().err


def test_classes_in_another_order_are_the_same(run, rectangles, tmp_path, capsys):
    other = tmp_path / "other"
    for split in SIZES:
        for path in (rectangles / split).rglob("*.png"):
            target = other / path.relative_to(rectangles)
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.asarray(Image.open(path))
            if path.parent.name == "labels":
                pixels = np.choose(np.minimum(pixels, 2), [np.uint8(1), np.uint8(0), np.uint8(255)])
            Image.fromarray(pixels).save(target)
    (other / "classes.txt").write_text("rectangle\nground\n")
    pack = str(run / "rectangles.task.safetensors")
    errors = []
    for root in (rectangles, other):
        assert main(["evaluate", pack, "--data", f"segmentation:{root}", "--json"]) == 0
        errors.append(json.loads(capsys.readouterr().out))
    assert errors[0]["iou"] == errors[1]["iou"]


def test_predict_writes_pictures_of_the_images_own_size(run, rectangles, tmp_path, capsys):
    pack, image = str(run / "rectangles.task.safetensors"), str(rectangles / "test/images/0.png")
    assert main(["predict", pack, image, "--output_dir", str(tmp_path / "new/folder"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["size"] == [80, 112] and sum(area["share"] for area in found["areas"]) == pytest.approx(1)
    with Image.open(found["labels"]) as labels:
        assert labels.mode == "P" and labels.size == (112, 80)
        shares = np.bincount(np.asarray(labels).reshape(-1), minlength=2) / (80 * 112)
    assert {area["class"]: area["share"] for area in found["areas"]} == pytest.approx(
        {name: share for name, share in zip(("ground", "rectangle"), shares, strict=True) if share}
    )
    with Image.open(found["overlay"]) as overlay:
        assert overlay.mode == "RGB" and overlay.size == (112, 80)
    assert main(["predict", pack, image]) == 0
    assert "ground" in capsys.readouterr().out
    assert main(["predict", pack, image, image, "--output_dir", str(tmp_path)]) == 2
    assert "Two images are called '0.png'" in capsys.readouterr().err
    assert main(["predict", pack, image, "--output_dir", image]) == 2
    assert f"The folder {image!r} cannot be made: {image!r} is no folder" in capsys.readouterr().err


def test_inspect_and_merge(run, tmp_path, capsys):
    pack = str(run / "rectangles.task.safetensors")
    assert main(["inspect", pack, "--details"]) == 0
    out = capsys.readouterr().out
    assert "a class for each pixel" in out and "40x56" in out and "mean IoU" in out
    assert main(["inspect", pack, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["problem"] == "map" and found["image_shape"] == [40, 56] and found["head"]["kind"] == "fpn"
    assert main(["verify", pack]) == 0
    assert "a head, fpn of" in capsys.readouterr().out
    assert main(["merge", pack, "--output", str(tmp_path / "plain.keras")]) == 0
    assert "[N, 40, 56, 3]" in capsys.readouterr().out


def test_designs_that_do_not_hold_it_say_so(run):
    spec = BaseSpec.of(load_backbone("shapesnet", image_size=32))
    with pytest.raises(ExportError, match="of the problem 'map' has a head of kind 'fpn'.*Use --design=patch"):
        list(fitting_packs([run / "rectangles.task.safetensors"], spec, check=check_is_dense))


def test_settings_that_would_do_nothing_are_refused(tmp_path):
    for flag in ("--class_weights=median_frequency", "--head=fcn8"):
        found = run_forked("train.py", "--data=digits", f"--output_dir={tmp_path / 'run'}", flag)
        assert found.returncode == 2
        assert f"{flag} is for tasks that find a class for each pixel; these find a class for each" in found.stderr
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_learned_is_said_before_the_training(rectangles, tmp_path):
    found = train(rectangles, tmp_path / "run", "--method=ewc")
    assert found.returncode == 2 and "which method ewc does not learn: its Fisher information" in found.stderr
    found = train(rectangles, tmp_path / "run", "--augment_train=resize(32,56)")
    assert found.returncode == 2 and "size 32x56 by --augment_train and those of evaluation 40x56" in found.stderr


def test_the_data_are_described_as_what_they_are(rectangles):
    assert describe_images(load_data(f"segmentation:{rectangles}"), "rectangles") == (
        "rectangles, 2 classes of pixels: train 12 images; validation 6 images; test 4 images."
    )
