"""Images for the ranges of int8."""

import numpy as np
import pytest
from PIL import Image

from export.lite.representative_images import representative_images
from export.shared.errors import ExportError
from piggyback_tf.data import DataError
from tests.packs.helpers import make_pack


@pytest.fixture(name="photos")
def _photos(tmp_path):
    for place, name in enumerate(("cat", "dog")):
        folder = tmp_path / "photos" / "train" / name
        folder.mkdir(parents=True)
        for index in range(5):
            Image.new("RGB", (20, 30), (10 * index, 100 * place, 0)).save(folder / f"{index}.png")
    return tmp_path / "photos"


def test_a_file_that_is_no_image_is_no_end_of_an_export(photos, caplog):
    (photos / "train" / "cat" / "0.png").write_bytes(b"")
    (photos / "train" / "cat" / "notes.txt").write_text("notes")
    pack = make_pack(image_size=8, eval_augment="resize(8,8)")
    (images,) = representative_images(f"folder:{photos}", [pack], 100)
    assert images.shape[1:] == (8, 8, 3)
    assert len(images) in (7, 8, 9)  # Of the whole images, those that are for validation left out.
    assert np.unique(images[..., 1]).tolist() == [0, 100]
    assert "0.png" in caplog.text
    assert "notes.txt" in caplog.text
    for path in (photos / "train" / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="Every image of class 'dog'"):
        representative_images(f"folder:{photos}", [pack], 100)


def test_images_of_another_size_than_the_base_takes(photos):
    packs = [make_pack(image_size=8, eval_augment=augment) for augment in ("resize(8,8)", "resize(8,9)")]
    found = r"'resize\(8,9\)' gives images of 8x9 pixels, and the base takes 8x8"
    with pytest.raises(ExportError, match=f"Task 'birds' cannot take the images of .*{found}"):
        representative_images(f"folder:{photos}", packs, 100)
