"""What the tests of the data need: image folders made on the spot, and a cache folder of their own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch) -> Path:
    """Keeps every cache entry of a test away from the user's."""
    folder = tmp_path / "piggyback_cache"
    monkeypatch.setenv("PIGGYBACK_CACHE", str(folder))
    return folder


@pytest.fixture
def picture():
    """Returns a function that makes a smooth colour picture, uint8 `(height, width, 3)`, from a number."""

    def make(height: int = 24, width: int = 32, number: int = 0) -> np.ndarray:
        y, x = np.mgrid[:height, :width]
        channels = [x * 255 / width, y * 255 / height, (x + y + 29 * number) * 2 % 256]
        return np.stack(channels, axis=-1).astype(np.uint8)

    return make


@pytest.fixture
def make_folder(tmp_path, picture):
    """Returns a function that writes `SPLIT/CLASS/NUMBER.png` for counts such as `{"train": {"cat": 3}}`."""

    def make(name: str = "pets", height: int = 24, width: int = 32, **splits: dict[str, int]) -> Path:
        root = tmp_path / name
        number = 0
        for split, classes in splits.items():
            for class_name, count in classes.items():
                folder = root / split / class_name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(picture(height, width, number)).save(folder / f"{i:03}.png")
                    number += 1
        return root

    return make
