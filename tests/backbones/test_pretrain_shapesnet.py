"""The script that made the shipped weights still runs, and the same seed gives the same images and weights."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.backbones import load_backbone

ROOT = Path(__file__).parents[2]


def pretrain(folder: Path, *arguments: str) -> None:
    # A process of its own: the script defines flags whose names other programs of the project use too.
    subprocess.run(
        [sys.executable, ROOT / "tools" / "pretrain_shapesnet.py", f"--output_dir={folder}", *arguments],
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )


def test_the_same_seed_draws_the_same_images(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        pretrain(tmp_path, f"--preview={tmp_path / name}.png", f"--seed={seed}")
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape == (8 * 32, 44 * 32, 3)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
    # No image is blank: in each there is ink that stands out from the paper.
    images = a.reshape(8, 32, 44, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32 * 32, 3).astype("float32")
    assert (images.max(axis=1) - images.min(axis=1)).max(axis=1).min() > 60


@pytest.mark.slow
def test_a_short_run_gives_weights_that_load(tmp_path):
    pretrain(tmp_path, "--images=88", "--validation_images=44", "--epochs=1")
    backbone = load_backbone("shapesnet", weights=tmp_path / "shapesnet.weights.h5")
    assert backbone.hash in (tmp_path / "README.md").read_text()
    assert backbone.hash != load_backbone("shapesnet", weights="random").hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "shapesnet.weights.h5"]
