"""What docs/litert.md and the patcher itself say to somebody who writes an app: from a photo to probabilities."""

import re
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from export.edge import piggyback_edge
from export.edge.piggyback_edge import main
from piggyback_tf.data import decode_image, parse_augment
from tests.export.helpers import ROOT, encode, picture

TEXT = (ROOT / "docs" / "litert.md").read_text()
PHOTO = encode(picture(70, 50), "JPEG")


@pytest.fixture(name="device")
def _device(patched, tmp_path):
    """A function of `max_classes` that returns what lies on a device, and the bank's probabilities."""

    def make(max_classes):
        export = patched("none", max_classes)
        pack, folder = export.packs[1], tmp_path / "device"
        shutil.copytree(export.folder, folder)
        (folder / f"{pack.task}.edge").rename(folder / "flowers.edge")
        (folder / "photo.jpg").write_bytes(PHOTO)
        image = decode_image(PHOTO, "photo")
        for operation in parse_augment(pack.eval_augment):
            image = operation.apply(image)
        return folder, pack, export.bank.predict(image[None], task=pack.task)[0]

    return make


def _run(code, folder):
    """Runs code on a device, where there is nothing of this project but what was exported."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("max_classes", [0, 9])
def test_the_examples_of_the_document(device, max_classes):
    folder, pack, expected = device(max_classes)
    section = TEXT.split("\n### From a photo to probabilities\n")[1].split("\n#")[0]
    blocks = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    assert len(blocks) == 3
    if max_classes:
        blocks = [block.replace("task.manifest.features", "task.manifest.max_classes") for block in blocks]
    files = [str(folder / name) for name in ("base.tflite", "flowers.edge", "current.tflite")]
    assert main(["install", *files]) == 0
    keep = [f"np.save('{number}.npy', probabilities)\n" for number in range(3)]
    said = _run("".join(part for pair in zip(blocks, keep, strict=True) for part in pair), folder)
    for number in range(3):
        np.testing.assert_allclose(np.load(folder / f"{number}.npy"), expected, rtol=0, atol=1e-5)
    first = said.splitlines()[0]
    best = int(expected.argmax())
    assert first == f"{pack.class_names[best]} {expected[best]:.2f}"
    # `predict` takes what the first of them wrote as it takes the photo.
    command = [
        sys.executable,
        "piggyback_edge.py",
        "predict",
        "base.tflite",
        "flowers.edge",
        "photo.jpg",
        "prepared.npy",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=folder).stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["photo.jpg", "prepared.npy"]
    assert len({line.partition(": ")[2] for line in lines}) == 1


def test_the_example_of_the_patcher(device):
    folder, _, expected = device(0)
    code = re.search(r"From Python:\n\n(.*?)\n\n(?=\S)", piggyback_edge.__doc__, re.S)[1]
    _run(f"{textwrap.dedent(code)}\nimport numpy\nnumpy.save('found.npy', probabilities)", folder)
    np.testing.assert_allclose(np.load(folder / "found.npy")[0], expected, rtol=0, atol=1e-5)
