"""The example of Apache Beam answers as the export does, in an environment that has Beam and TensorFlow alone."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.export.helpers import encode, picture, texts

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "cluster" / "beam_predict.py"
# Of an environment as docs/scale.md says: to make one takes minutes.
PYTHON = os.environ.get("PIGGYBACK_BEAM_PYTHON", "")


@pytest.mark.skipif(not PYTHON, reason="needs PIGGYBACK_BEAM_PYTHON, a Python with apache-beam and tensorflow")
@pytest.mark.slow
def test_a_pipeline_answers_as_the_export(small, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    files = {f"{index}.jpg": encode(picture(9 + index, 30, seed=index), "JPEG") for index in range(40)}
    for name, content in (files | {"broken.jpg": b"abc"}).items():
        (photos / name).write_bytes(content)
    tasks = [small.packs[0].task, small.packs[1].task]
    flags = [f"--export={small.packed}", f"--images={photos}/*.jpg", f"--tasks={','.join([*tasks, 'fish'])}"]
    command = [PYTHON, EXAMPLE, *flags, f"--output={tmp_path / 'answers'}", "--runner=DirectRunner"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for path in tmp_path.glob("answers*.jsonl") for line in path.read_text().splitlines()]
    answers = {(Path(line["image"]).name, line["task"]): line for line in lines}
    assert len(answers) == len(lines) == 41 * 3
    for name, content in files.items():
        found = small.loaded().signatures["encoded"](image_bytes=texts(*[content] * 2), task=texts(*tasks))
        for row, task in enumerate(tasks):
            labels = [label.decode() for label in found["labels"].numpy()[row] if label]
            assert answers[name, task]["labels"] == labels
            assert answers[name, task]["scores"] == pytest.approx(found["scores"].numpy()[row][: len(labels)], abs=2e-6)
        assert "no task 'fish'" in answers[name, "fish"]["error"]
    assert all("no image" in answers["broken.jpg", task]["error"] for task in tasks)
    for wrong, sentence in (
        (f"--export={small.packed.parent}", "this is no version of an export"),
        (f"--images={tmp_path}/none/*", "Empty match"),
    ):
        refused = subprocess.run([*command, wrong], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
        assert refused.returncode and sentence in refused.stderr, refused.stderr[-3000:]
