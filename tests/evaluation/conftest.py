"""What tests of pages share."""

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.pages import EVIL, write_answers
from tests.packs.helpers import make_pack


@pytest.fixture(name="photos")
def _photos(tmp_path):
    """A folder of six test images of three classes, one of which has a name that would be a program."""
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name in ("ant", EVIL.replace("/", "|"), "cat"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{number}.png")
    return tmp_path / "data"


@pytest.fixture(name="pack")
def _pack(tmp_path, photos):
    """A pack with its answers beside it: four of six images are wrong."""
    folder = tmp_path / "packs"
    folder.mkdir()
    data = write_answers(folder, f"folder:{photos}")
    make_pack(class_names=list(data.class_names)).save(folder / "birds.task.safetensors")
    return folder / "birds.task.safetensors"
