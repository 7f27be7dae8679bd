"""The page for the browser, of tasks that find a class for each pixel."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import load_data, parse_augment
from piggyback_tf.evaluation import answer_kinds
from piggyback_tf.evaluation.answers import AnswerLog, read_answers
from piggyback_tf.evaluation.page import read_subjects
from piggyback_tf.evaluation.segment_pictures import swatch_png
from tests.evaluation.pages import load, page_of, written
from tests.packs.helpers import make_pack

HALF = "resize(100,150)"


@pytest.fixture(name="roads")
def _roads(tmp_path):
    """A folder of six test images of 200x300 pixels, of which the left part is road."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for kind in ("images", "labels"):
            (tmp_path / "roads" / split / kind).mkdir(parents=True)
        for number in range(6):
            labels = np.zeros((200, 300), np.uint8)
            labels[:, : 20 * number + 20] = 1
            labels[0] = 255
            pixels = np.broadcast_to(rng.integers(0, 99, 3), (200, 300, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "roads" / split / "images" / f"{number}.png")
            Image.fromarray(labels).save(tmp_path / "roads" / split / "labels" / f"{number}.png")
    (tmp_path / "roads" / "classes.txt").write_text("grass\nroad\n")
    return tmp_path / "roads"


def write_segments(folder, roads):
    """Writes answers of 80 roads and 220 columns of grass, at half the size, whose measures follow by hand."""
    data, log = load_data(f"segmentation:{roads}"), AnswerLog("map", True)
    answer = np.zeros((100, 150), np.uint8)
    answer[:, :40] = 1
    originals = [data.test.original(place, data.test.read(place)) for place in range(6)]
    counts = []
    for original in originals:
        truth, found = original.target, np.kron(answer, np.ones((2, 2), np.uint8))
        counts.append([[((truth == a) & (found == b)).sum() for b in range(2)] for a in range(2)])
    logits = np.stack([1 - answer, answer], axis=-1).astype(np.float32)
    log.note(np.stack([answer] * 4), np.stack([answer] * 4), np.array(counts[:4]), originals[:4], parse_augment(HALF))
    log.note(np.stack([answer] * 2), np.stack([logits] * 2), np.array(counts[4:]), originals[4:], parse_augment(HALF))
    measured = {"mean_iou_error": 30.0, "images": 6, "iou": {"grass": 90.0, "road": None}}
    log.write(folder / "birds.answers1.json.gz", data, "test", task="birds", errors=measured)
    return data


def test_segments_show_image_truth_and_answer_the_worst_and_the_best(tmp_path, pack, roads):
    data = write_segments(pack.parent, roads)
    head = {"kernel": np.zeros((4, 2), "float32"), "bias": np.zeros(2, "float32")}
    make_pack(class_names=list(data.class_names), head=head).save(pack)
    page, told, subjects = page_of(tmp_path, pack, images=3)
    # The fourth image is right: its road has 80 columns.
    assert (told["tasks"][0]["wrong_images"], told["tasks"][0]["shown_images"]) == (5, 3)
    assert "5 of 6 images of the test split" in page.text and "are not right in every pixel" in page.text
    iou = [(min(r, 80) / max(r, 80) + (300 - max(r, 80)) / (300 - min(r, 80))) / 2 for r in range(20, 140, 20)]
    assert subjects.tasks[0].answers.columns["iou"] == pytest.approx(iou, abs=1e-4)
    worst, best = sorted(range(6), key=iou.__getitem__)[:2], sorted(range(6), key=iou.__getitem__)[-2]
    shown = [f"IoU {100 * iou[place]:.0f} % {place}.png" for place in (*worst, best)]
    assert re.search(" .*".join(map(re.escape, shown)), page.text)
    pictures_of_page = [image for image in page.of("img") if image.get("class") != "swatch"]
    assert len(pictures_of_page) == 9
    for place, three in enumerate((pictures_of_page[:3], pictures_of_page[3:6])):
        found = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2])))) for one in three]
        image, truth, answer = (pixels.astype(int) for pixels in found)
        assert image.shape == truth.shape == answer.shape == (107, 160, 3)
        assert [one["alt"].rpartition(": ")[2] for one in three[1:]] == ["truth", "answer"]
        # Roads are red: where the truth is, as many columns of 300 as it has, and where the answer is, 80.
        for pixels, columns in ((truth, 20 * worst[place] + 20), (answer, 80)):
            assert abs(((pixels - image)[50, :, 0] > 12).sum() - columns * 160 / 300) < 8
    assert re.search(r"IoU % by class .*grass 90\.00 road -", page.text)
    assert len([image for image in page.of("img") if image.get("class") == "swatch"]) == 2


def test_answers_for_pixels_that_are_none_are_not_shown(tmp_path, pack, roads, monkeypatch):
    data = write_segments(pack.parent, roads)
    head = {"kernel": np.zeros((4, 2), "float32"), "bias": np.zeros(2, "float32")}
    make_pack(class_names=list(data.class_names), head=head).save(pack)
    large = base64.b64encode(swatch_png(3)).decode()
    subjects = read_subjects([str(pack)], load)
    subjects.tasks[0].answers.columns["answer"] = ["", "no base64!", "aGVsbG8=", large, None, None]
    page, _, _ = written(tmp_path, subjects, 6)
    assert page.text.count("no answer") == 5 and len([i for i in page.of("img") if i.get("class") != "swatch"]) == 10


def test_answers_for_pixels_are_kept_of_the_worst_and_the_best(tmp_path, pack, roads, monkeypatch):
    monkeypatch.setattr(answer_kinds, "_ENDS", 2)
    write_segments(pack.parent, roads)
    found = read_answers(pack.parent / "birds.answers1.json.gz")
    order = answer_kinds.in_order(found.columns["iou"])
    assert [place for place in order if found.columns["answer"][place]] == [*order[:2], *order[-2:]]
