"""README's commands run as they stand there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.commands.all_commands import _parser
from piggyback_tf.commands.argparse_command import Parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def _commands() -> list[list[str]]:
    """Returns the words of each command in README's shell blocks that runs this project, without those to install."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)).splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    found += [shlex.split(line) for line in re.findall(r"`(python -m piggyback_tf [^`\n]*)`", README)]
    return [words[1:] for words in found if words[0] == "python" and "..." not in words]


COMMANDS = _commands()


def test_they_are_found():
    assert len(COMMANDS) > 15
    assert {words[1] for words in COMMANDS if words[0] == "-m"} == {
        *("piggyback_tf", "export.saved_model", "export.verify", "export.serving", "export.litert"),
    }


def test_packs_are_called_as_trainings_call_them():
    trained = {"runs/quickstart/digits.task.safetensors"}
    assert "--data=digits" in (ROOT / "configs/quickstart.flags").read_text()
    for words in COMMANDS:
        if words[0] == "train.py":
            given = dict(word.removeprefix("--").split("=", 1) for word in words[1:])
            name = given.get("task") or Path(given["data"].removeprefix("folder:")).name
            trained.add(f"{given['output_dir']}/{name}.task.safetensors")
    named = set(re.findall(r"runs/\w+/[\w.]+\.safetensors", README))
    assert named == trained
    for words in COMMANDS:
        if words[:3] == ["-m", "piggyback_tf", "table"]:
            runs = [word for word in words if word.startswith("runs/")]
            assert runs == ["runs/quickstart"], "runs on two networks are no survey"


@pytest.mark.parametrize("words", [w for w in COMMANDS if w[:2] == ["-m", "piggyback_tf"]], ids=" ".join)
def test_their_arguments_are_known(words):
    assert isinstance(parser := _parser(), Parser)
    parser.parse_args(words[2:])


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    """A checkout after README's trainings, with tasks that are quick to make in their place."""
    from piggyback_tf.backbones import load_backbone
    from tests.packs.helpers import pack_of, trained_model

    folder = tmp_path_factory.mktemp("checkout")
    for name in ("piggyback_tf", "export", "train.py", "configs"):
        (folder / name).symlink_to(ROOT / name)
    train = [sys.executable, "train.py", "--flagfile=configs/quickstart.flags", "--epochs=2"]
    subprocess.run(train, cwd=folder, check=True, capture_output=True)
    shapesnet = load_backbone("shapesnet")
    pack_of(trained_model(shapesnet, classes=2), shapesnet, "new", 2).save(folder / "new.task.safetensors")
    mobilenet = load_backbone("mobilenet_v2", weights="random", image_size=32)
    (folder / "runs/mine").mkdir()
    photos = pack_of(trained_model(mobilenet, classes=2), mobilenet, "photos", 2)
    photos.save(folder / "runs/mine/photos.task.safetensors")
    (folder / "FOLDER").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("photo.jpg", "FOLDER/a.png", "FOLDER/b.png"):
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.slow
def test_they_run(folder):
    ran = 0
    for words in COMMANDS:
        text = " ".join(words)
        # They need photos and ImageNet weights, or an account on the Hugging Face Hub.
        if words[0] == "train.py" or "OWNER/NAME" in text:
            continue
        done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        ran += 1
    assert ran > 12
