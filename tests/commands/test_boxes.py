"""A task of boxes from data to pictures, by the commands."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.evaluation.answers import read_answers
from piggyback_tf.evaluation.page.picture_kinds import PICTURES
from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskBank, TaskPack
from piggyback_tf.problems import HeadSpec
from tests.forked import run_forked

SIZE, PREPARED = (80, 112), (40, 56)
AUGMENT = f"resize({PREPARED[0]},{PREPARED[1]})"


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Returns a folder of noise with a bright square in each image, red or not, and COCO's annotations of those."""
    root, rng, number = tmp_path_factory.mktemp("data") / "squares", np.random.default_rng(0), 0
    (root / "annotations").mkdir(parents=True)
    for split, count in {"train": 12, "val": 4, "test": 4}.items():
        (root / split).mkdir()
        content = {"categories": [{"id": 7, "name": "grey"}, {"id": 9, "name": "red"}], "images": [], "annotations": []}
        for place in range(count):
            number, red = number + 1, place % 2
            side = int(rng.integers(20, 40))
            top, left = (int(rng.integers(0, whole - side)) for whole in SIZE)
            image = rng.integers(0, 60, (*SIZE, 3)).astype(np.uint8)
            image[top : top + side, left : left + side, : 1 if red else 3] += 180
            Image.fromarray(image).save(root / split / f"{place}.png")
            height, width = SIZE
            content["images"].append({"id": number, "file_name": f"{place}.png", "height": height, "width": width})
            box = {"bbox": [left, top, side, side], "area": side**2, "iscrowd": 0}
            content["annotations"].append({"id": number, "image_id": number, "category_id": (7, 9)[red], **box})
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    """Returns the file of a task with a head as it starts, but surer that there are objects."""
    backbone = load_backbone("shapesnet")
    model = METHODS["piggyback"]().build(backbone, HeadSpec("fcos", 2, 8, PREPARED))
    head = model.get_layer("head")
    head.get_layer("class_logits").bias.assign([1.0, -1.0])
    head.get_layer("sides_logits").kernel.assign(np.random.default_rng(0).normal(0, 0.3, (1, 1, 8, 4)))
    path = tmp_path_factory.mktemp("pack") / "squares.task.safetensors"
    described = {"task": "squares", "class_names": ["grey", "red"], "method": "piggyback", "eval_augment": AUGMENT}
    TaskPack.from_model(model, backbone=backbone, problem="boxes", **described).save(path)
    return path


@pytest.mark.slow
def test_predict_gives_boxes_in_the_files_own_pixels(pack, squares, tmp_path, capsys):
    image = squares / "test" / "0.png"
    pixels = np.asarray(Image.open(image))
    assert main(["predict", str(pack), str(image), "--output_dir", str(tmp_path), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    prepared = apply_operations(parse_augment(AUGMENT), pixels)
    (answer,) = TaskBank(load_backbone("shapesnet")).add(TaskPack.load(pack)).predict([prepared], task="squares")
    there = answer[answer[:, 4] >= 0]
    assert found["size"] == list(SIZE) and len(found["boxes"]) == len(there) > 1
    scale = SIZE[0] / PREPARED[0]
    for box, (top, left, bottom, right, number, score) in zip(found["boxes"], there.tolist(), strict=True):
        assert box["image_id"] == "0.png" and box["category_id"] == number + 1 and box["score"] == score
        assert box["class"] == ("grey", "red")[int(number)]
        expected = [scale * left, scale * top, scale * (right - left), scale * (bottom - top)]
        assert box["bbox"] == pytest.approx(expected, abs=1e-4)
    with Image.open(found["drawn"]) as drawn:
        assert drawn.size == SIZE[::-1] and (np.asarray(drawn) != pixels).any()
    assert main(["predict", str(pack), str(image)]) == 0
    out = capsys.readouterr().out
    believed = [box for box in found["boxes"] if box["score"] >= 0.3]
    assert out.count(" %  grey  (") == len([box for box in believed if box["class"] == "grey"]) > 0
    assert len(out.splitlines()) == 1 + len(believed) < 1 + len(found["boxes"])


def test_evaluate_measures_boxes_and_notes_answers_for_pages(pack, squares, tmp_path, capsys):
    own = tmp_path / pack.name
    own.write_bytes(pack.read_bytes())
    arguments = ["evaluate", str(own), "--data", f"coco:{squares}"]
    assert main([*arguments, "--answers", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 <= found["ap_error_low"] <= found["ap_error"] <= found["ap_error_high"] <= 100 and found["images"] == 4
    assert set(found["ap"]) == set(found["ap50"]) == {"grey", "red"}
    assert main(arguments) == 0
    assert "AP50 % of red" in capsys.readouterr().out
    noted = read_answers(Path(found["answers"]))
    assert [len(rows) for rows in noted.columns["truth"]] == [1] * 4
    assert all(row[5] >= 0.3 for rows in noted.columns["found"] for row in rows) and any(noted.columns["found"])
    kind = PICTURES["boxes"]
    wrong = kind.wrong(noted)
    pixels = np.asarray(Image.open(squares / "test" / "0.png"))
    picture = kind.draw(noted, wrong[0], pixels)
    assert str(picture).count("<img") == 2
    shown = str(kind.show(noted, wrong[0], picture))
    missed, added = noted.columns["missed"][wrong[0]], sum(row[6] == 0 for row in noted.columns["found"][wrong[0]])
    assert f"{missed} missed, {added} wrong" in shown and missed + added > 0


def test_a_plain_model_says_of_points_what_the_task_says(pack, tmp_path, capsys):
    assert main(["merge", str(pack), "--output", str(tmp_path / "plain.keras")]) == 0
    assert "[N, 40, 56, 3]" in capsys.readouterr().out
    assert main(["inspect", str(pack), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["problem"] == "boxes" and found["head"]["kind"] == "fcos"


@pytest.mark.slow
def test_a_run_learns_boxes_and_reports_them(squares, tmp_path, capsys):
    settings = {
        "data": f"coco:{squares}",
        "backbone": "shapesnet",
        "augment_train": f"{AUGMENT}|flip",
        "augment_eval": AUGMENT,
        "method": "finetune",
        "epochs": 40,
        "batch_size": 4,
        "head_lr": 1e-2,
        "output_dir": tmp_path / "run",
    }
    done = run_forked("train.py", *(f"--{name}={value}" for name, value in settings.items()))
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (step,) = metrics["methods"]["finetune"]["steps"]
    assert step["errors"]["squares"]["mean_ap50"] > 50
    assert "100 less AP in percent" in (tmp_path / "run" / "report.md").read_text()
    assert main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "page.html")]) == 0
    capsys.readouterr()
    page = (tmp_path / "page.html").read_text()
    assert "Of tasks of boxes each picture is" in page and "AP % of each class" in page
