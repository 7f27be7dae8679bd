"""`predict --results`: answers of several tasks to many images, in files, by a command that can be begun again."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.commands.answers import UsageError
from piggyback_tf.commands.predict_results import _part, _Shards, predict_into, read_list
from tests.packs.helpers import pack_of, renamed, trained_model
from tests.run_command import ROOT, run_command


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "\ufeffb, c.png\r\n\r\n d.png\n", ["b, c.png", " d.png"]),
        ("a.csv", 'id,image\n1,"b, c.png"\n2,d.png\n', ["b, c.png", "d.png"]),
        ("a.csv", "id,path\n1,b.png\n", "names no column 'image'"),
        ("a.csv", "id,image\n1,b.png\n2,\n", "line 3 has nothing in the column 'image'"),
        ("a.csv", 'id,image\n1,"b\n', "no list in UTF-8"),
        ("a.txt", b"\xff\n", "no list in UTF-8"),
    ],
)
def test_a_list_of_images(name, text, expected, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(expected, list):
        assert read_list(path) == expected
    else:
        with pytest.raises(UsageError, match=expected):
            read_list(path)


def test_parts_are_all_files_once():
    assert _part(None) == (0, 1) and _part("3/4") == (3, 4)
    assert sorted(number for first in range(4) for number in range(first, 10, 4)) == list(range(10))
    for text in ("4/4", "0/0", "x", "-1/2", "1"):
        with pytest.raises(UsageError, match="this must be K/N"):
            _part(text)


def test_a_folder_holds_the_answers_to_one_request(tmp_path):
    shards = _Shards(tmp_path / "out", ["a", "b", "c"], 2)
    assert [list(shards.images(number)) for number in range(shards.number)] == [["a", "b"], ["c"]]
    shards.keep_plan({"top_k": 5})
    shards.keep_plan({"top_k": 5})
    with pytest.raises(UsageError, match="What differs: --top_k, the number of images, the images. Use an"):
        _Shards(tmp_path / "out", ["a", "b"], 2).keep_plan({"top_k": 4})
    (tmp_path / "out" / "plan.json").write_text("[]")
    with pytest.raises(UsageError, match="is damaged"):
        shards.keep_plan({"top_k": 5})
    with pytest.raises(UsageError, match="this folder holds something else"):
        _Shards(tmp_path, ["a"], 2).keep_plan({})


def test_options_that_do_not_go_together():
    for given, message in [
        ({"output_dir": "x"}, "pictures are for few"),
        ({"jobs": 2, "part": "0/2"}, "not go with --p"),
    ]:
        options = argparse.Namespace(**{"results": "x", "output_dir": None, "jobs": None, "part": None, **given})
        with pytest.raises(UsageError, match=message):
            predict_into(options, ["a"])


@pytest.fixture(scope="module", name="asked")
def _asked(tmp_path_factory):
    """The packs of two tasks, and a folder of seven images of which one is broken."""
    from piggyback_tf.backbones import load_backbone

    folder = tmp_path_factory.mktemp("asked")
    backbone = load_backbone("shapesnet", weights="random", seed=5)
    pack = pack_of(trained_model(backbone, norm="task"), backbone)
    pack.settings = {"seed": 5}
    pack.save(folder / "birds.task.safetensors")
    renamed(pack, "more").save(folder / "more.task.safetensors")
    images = folder / "images"
    images.mkdir()
    height, width = pack.image_shape
    for number in range(6):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(images / f"{number}.png")
    (images / "3b.png").write_bytes(b"no image")
    return folder


def lines_of(folder):
    return [json.loads(line) for path in sorted(folder.glob("a*.jsonl")) for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_second_start_answers_only_what_is_missing(asked, tmp_path, capsys):
    images, out = str(asked / "images"), tmp_path / "out"
    command = ["predict", str(asked / "birds.task.safetensors"), images, "--top_k=2", "--batch_size=2", "--json"]
    assert main(command) == 2, "one image is broken"
    plain = json.loads(capsys.readouterr().out)
    command += [f"--results={out}", "--shard_size=3", f"--packs={asked / 'more.task.safetensors'}"]
    assert main(command) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer == {"results": str(out), "files": 3, "new": 3, "images": 7, "errors": 1}
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"answers-0000{number}-of-00003.jsonl" for number in range(3)),
        "plan.json",
    ]
    lines = lines_of(out)
    assert [line["image"] for line in lines] == [each["image"] for each in plain]
    for line, alone in zip(lines, plain, strict=True):
        assert line.get("error") == alone.get("error")
        if "error" not in line:
            # The other task has the same masks.
            assert line["tasks"]["more"] == line["tasks"]["birds"]
            for found, expected in zip(line["tasks"]["birds"]["classes"], alone["classes"], strict=True):
                assert found["class"] == expected["class"]
                assert found["probability"] == pytest.approx(expected["probability"], rel=1e-5)
    # A file is gone, as if the first start had been killed before it.
    middle = out / "answers-00001-of-00003.jsonl"
    content, times = middle.read_bytes(), {path: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    middle.unlink()
    assert main([*command, "--part=0/2"]) == 0
    assert json.loads(capsys.readouterr().out) == answer | {"files": 2, "new": 0, "images": 4, "errors": 0}
    assert main(command) == 2
    assert json.loads(capsys.readouterr().out)["new"] == 1
    assert middle.read_bytes() == content
    assert [path for path in times if path.stat().st_mtime_ns != times[path]] == [middle]
    # Another request.
    assert main([*command, "--top_k=1"]) == 2
    assert "What differs: --top_k. Use" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.slow
def test_several_processes_answer_and_end_with_the_command(asked, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "list.csv").write_text("image\n" + "".join(f"{asked}/images/{n % 6}.png\n" for n in range(60)))
    arguments = ["predict", str(asked / "birds.task.safetensors"), f"--list={tmp_path / 'list.csv'}"]
    arguments += [f"--results={out}", "--shard_size=2", "--jobs=2", "--json"]
    process = subprocess.Popen([sys.executable, "-m", "piggyback_tf", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL)
    while not list(out.glob("answers-*")):
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(1)
    there = len(list(out.glob("answers-*")))
    status, lines, errors, loaded = run_command(*arguments)
    assert (status, loaded) == (0, False), errors
    answer = json.loads("\n".join(lines))
    assert answer == {"results": str(out), "files": 30, "new": 30 - there, "images": 60, "errors": 0}
    assert [line["image"] for line in lines_of(out)] == [f"{asked}/images/{n % 6}.png" for n in range(60)]
