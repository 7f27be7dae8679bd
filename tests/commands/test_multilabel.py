"""A task of images that are of any number of classes, from tables to a page, by the commands."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import piggyback_tf as pb
from export.lite.kinds import check_is_dense
from export.servable.problem_signatures import check_is_served
from export.shared.errors import ExportError
from export.shared.packs import fitting_packs
from piggyback_tf.__main__ import main
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import load_data
from piggyback_tf.packs import BaseSpec, TaskPack
from tests.forked import run_forked

SIZES = {"train": 48, "test": 16}
NAMES = ("left", "red", "never")


@pytest.fixture(scope="module")
def tints(tmp_path_factory):
    """Returns a folder of noise that may be bright on the left, and red, by two tables: none is for validation."""
    root, rng = tmp_path_factory.mktemp("data") / "tints", np.random.default_rng(0)
    for split, count in SIZES.items():
        (root / split).mkdir(parents=True)
        lines = ["image,left,red,never"]
        for place in range(count):
            pixels, left, red = rng.integers(0, 90, (40, 40, 3)), place % 2, place // 2 % 2
            pixels[:, :20] += 140 * left
            pixels[..., 0] += 90 * red
            pixels = np.minimum(pixels, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{place}.png")
            lines.append(f"{place}.png,{left},{red},{int(split == 'train' and place == 7)}")
        (root / split / "labels.csv").write_text("\n".join(lines))
    return root


@pytest.fixture(scope="module")
def run(tints, tmp_path_factory):
    """Returns the folder of a finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    flags = {"data": f"multilabel:{tints}", "backbone": "shapesnet", "epochs": 6, "batch_size": 8, "head_lr": 0.03}
    found = run_forked("train.py", *(f"--{name}={value}" for name, value in flags.items()), f"--output_dir={folder}")
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture(name="pack")
def _pack(run):
    return str(run / "tints.task.safetensors")


def test_a_run_says_what_it_learned(run, pack):
    (step,) = json.loads((run / "metrics.json").read_text())["methods"]["piggyback"]["steps"]
    measured, history = step["errors"]["tints"], step["history"]
    assert measured["mean_precision_error"] < 15 and measured["images"] == 16
    assert measured["average_precision"]["never"] is None and history["cross_entropy"][-1] < history["cross_entropy"][0]
    report = (run / "report.md").read_text()
    assert "Errors are 100 less mean average precision in percent; in brackets: middle 95 % of a bootstrap" in report
    loaded = TaskPack.load(pack)
    assert loaded.problem == "multilabel" and loaded.head_spec.is_dense
    assert loaded.errors["test"]["mean_precision_error"] == measured["mean_precision_error"]


def test_evaluate_measures_what_the_training_did(pack, tints, tmp_path, capsys):
    assert main(["evaluate", pack, "--data", f"multilabel:{tints}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["mean_precision_error"] == pytest.approx(found["as_of_training"]["mean_precision_error"], abs=1e-9)
    # Fewer classes in another order, by the same names.
    for split in SIZES:
        (tmp_path / split).mkdir()
        (tmp_path / split / "images").symlink_to(tints / split)
        rows = [line.split(",") for line in (tints / split / "labels.csv").read_text().splitlines()[1:]]
        lines = ["image,red,left", *(f"images/{name},{red},{left}" for name, left, red, _ in rows)]
        (tmp_path / split / "labels.csv").write_text("\n".join(lines))
    assert main(["evaluate", pack, "--data", f"multilabel:{tmp_path}", "--split", "test"]) == 0
    out = capsys.readouterr().out
    assert re.search(rf"precision % +{found['mean_precision_error']:.2f} \[.*\n.*precision % of left +[0-9.]+\n", out)
    assert re.search("average precision % of never +-\n", out)
    assert main(["evaluate", pack, "--data", "digits"]) == 2
    assert "finds any number of classes for each image, and the data 'digits' have a class" in capsys.readouterr().err


def test_predict_inspect_and_merge(pack, tints, tmp_path, capsys):
    image = str(tints / "test" / "3.png")
    assert main(["predict", pack, image, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    found = {one["class"]: one["probability"] for one in answer["classes"]}
    assert set(found) == set(NAMES) and found["left"] > 0.5 and found["red"] > 0.5 and found["never"] < 0.5
    assert main(["predict", pack, image, "--output_dir", str(tmp_path)]) == 2
    assert "finds any number of classes for each image, and has no pictures" in capsys.readouterr().err
    assert main(["inspect", pack, "--details"]) == 0
    out = capsys.readouterr().out
    assert "any number of classes for each image" in out and "100 less mean average precision" in out
    assert main(["verify", pack]) == 0 and main(["merge", pack, "--output", str(tmp_path / "plain.keras")]) == 0


def test_a_bank_answers_as_the_plain_model_beside_other_tasks(pack, tints):
    bank = pb.TaskBank(load_backbone("shapesnet", image_size=32)).add(pack)
    images = np.stack([load_data(f"multilabel:{tints}").test.read(place)[4:36, 4:36] for place in range(4)])
    probabilities = bank.predict(images, task="tints")
    assert probabilities.shape == (4, 3) and probabilities.sum(axis=1).max() > 1.2
    np.testing.assert_allclose(bank.to_keras("tints")(images), probabilities, atol=1e-6)
    ranked = bank.top_k(images, task="tints", k=2)[3]
    assert {name for name, _ in ranked} == {"left", "red"} and ranked[0][1] >= ranked[1][1]


def test_the_page_shows_wrong_images_and_each_class(run, pack, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["report", str(run), "--output", str(page), "--json"]) == 0
    (task,) = json.loads(capsys.readouterr().out)["tasks"]
    text = page.read_text()
    assert task["wrong_images"] == task["shown_images"] == text.count('<figure><div class="frame">')
    assert "average precision % by class" in text and "no answers" not in text


def test_exports_and_methods_say_what_they_do_not_hold(pack, tints, tmp_path):
    spec = BaseSpec.of(load_backbone("shapesnet", image_size=32))
    with pytest.raises(ExportError, match="of the problem 'multilabel' has a head of kind 'dense'.*Use --design=patch"):
        list(fitting_packs([pack], spec, check=check_is_dense))
    assert len(list(fitting_packs([pack], spec, check=check_is_served))) == 1
    flags = (f"--data=multilabel:{tints}", f"--output_dir={tmp_path / 'run'}", "--method=ewc", "--backbone=shapesnet")
    found = run_forked("train.py", *flags)
    assert found.returncode == 2
    assert "which method ewc does not learn: its Fisher information is for one class per image" in found.stderr
