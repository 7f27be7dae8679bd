"""A network of one's own, a model within it, from the command line: training, bank and exports."""

import json
import shutil

import keras
import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import read_image
from piggyback_tf.packs import TaskBank, TaskPack
from tests.forked import run_forked
from tests.own_network import nested_network

TRAIN = ["train.py", "--data=digits", "--epochs=2", "--batch_size=256", "--head_lr=1e-2", "--mask_budget=1"]


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
    """The folder with the network's file, and the file of a pack that was trained on it."""
    folder = tmp_path_factory.mktemp("own")
    nested_network().save(folder / "mine.keras")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(2):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    done = run_forked(*TRAIN, f"--backbone={folder / 'mine.keras'}", f"--output_dir={folder / 'run'}", "--json")
    assert done.returncode == 0, done.stderr
    assert "piggyback trains" in done.stderr
    assert "on mine.keras, in 2 epochs" in done.stderr
    # All of stdout is the answer.
    answer, metrics = json.loads(done.stdout), json.loads((folder / "run" / "metrics.json").read_text())
    assert answer == {"folder": str(folder / "run"), "report": str(folder / "run" / "report.md"), **metrics}
    return folder, folder / "run" / "digits.task.safetensors"


def test_the_pack_is_for_this_network_and_masks_the_nested_model(trained):
    folder, file = trained
    pack = TaskPack.load(file)
    assert (pack.base_name, pack.base_weights, pack.image_size) == ("mine.keras", "given", 32)
    assert set(pack.masks) == {
        "inner/depthwise_conv2d/kernel", "inner/conv2d/kernel", "stem/kernel", "last/kernel"
    }  # fmt: skip
    assert pack.base_hash == load_backbone(folder / "mine.keras").hash
    assert 0 < pack.zeros_total < 1


def test_commands_take_the_file_and_ask_for_it(trained, capsys):
    folder, file = trained
    image, backbone = folder / "images" / "0.png", f"--backbone={folder / 'mine.keras'}"
    assert main(["predict", str(file), str(image), "--top_k=1"]) == 2
    asked = "was trained on the network in the file 'mine.keras'; say where it is: --backbone=PATH."
    assert asked in capsys.readouterr().err
    assert main(["predict", str(file), str(image), backbone, "--top_k=1"]) == 0
    label = capsys.readouterr().out.split()[-1]
    bank = TaskBank(load_backbone(folder / "mine.keras")).add(file)
    assert label == bank.top_k(read_image(image)[None], task="digits", k=1)[0][0][0]
    assert main(["evaluate", str(file), "--data=digits", backbone]) == 0
    rows = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
    rows = {row[0]: row[-1].strip() for row in rows}
    assert rows["top-1 error %"] == rows["as of training"]
    assert main(["verify", str(file), backbone]) == 0
    assert "base    mine.keras (given) has the hash" in capsys.readouterr().out
    assert main(["merge", str(file), backbone, f"--output={folder / 'merged.keras'}"]) == 0
    images = read_image(image)[None]
    merged = keras.saving.load_model(folder / "merged.keras")
    np.testing.assert_allclose(merged(images), bank.predict(images, task="digits"), atol=1e-6)
    for wrong, sentence in (
        ("--weights=imagenet", "holds the weights of its network"),
        (f"--backbone={folder / 'none.keras'}", "There is no model file"),
    ):
        capsys.readouterr()
        assert main(["verify", str(file), backbone, wrong]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["saved_model", "litert"])
def test_exports_answer_as_the_bank_does(trained, kind, tmp_path):
    folder, file = trained
    given = f"--packs={file}", f"--backbone={folder / 'mine.keras'}"
    done = run_forked("-m", f"export.{kind}", *given, f"--output={tmp_path / 'out'}", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads(done.stdout)
    if kind == "litert":
        target = tmp_path / "out" / "base.tflite"
        assert {str(target), str(tmp_path / "out" / "digits.edge")} < set(written["files"])
    else:
        target = tmp_path / "out"
        assert written == {"folder": str(target / "1"), "version": 1, "tasks": ["digits"]}
    done = run_forked("-m", "export.verify", target, *given, f"--images={folder / 'images'}", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["export"], found["images"], found["good"]) == (str(target), 2, True)
    assert [(task["task"], task["good"]) for task in found["tasks"]] == [("digits", True)]


def test_a_table_calls_the_network_by_its_file(trained, capsys):
    folder, _ = trained
    assert main(["table", "--layout=paper6", str(folder / "run")]) == 0
    assert "mine.keras" in (printed := capsys.readouterr().out)
    assert str(folder) not in printed
    assert json.loads((folder / "run" / "settings.json").read_text())["backbone"] == str(folder / "mine.keras")


def test_the_precision_is_that_of_the_file(trained, tmp_path):
    folder, _ = trained
    command = [*TRAIN, f"--backbone={folder / 'mine.keras'}", f"--output_dir={tmp_path / 'run'}"]
    done = run_forked(*command, "--mixed_precision=bfloat16")
    assert done.returncode == 2
    assert "compute as its file says; leave it out." in done.stderr


def test_another_network_in_the_same_file_is_no_continuation(trained, tmp_path):
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    other, kept = nested_network(), (folder / "mine.keras").read_bytes()
    other.get_layer("stem").bias.assign(np.full(12, 0.5))
    try:
        other.save(folder / "mine.keras")
        done = run_forked(*TRAIN, f"--backbone={folder / 'mine.keras'}", f"--output_dir={tmp_path / 'run'}")
    finally:
        (folder / "mine.keras").write_bytes(kept)
    assert done.returncode == 2
    assert "base_hash" in done.stderr
