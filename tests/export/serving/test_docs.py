"""What docs/serving.md says to somebody who does not use the client."""

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import urllib.request

import pytest
import tensorflow as tf

from export.deployment.options import ServingOptions
from export.servable.options import ExportOptions
from tests.export.helpers import ROOT
from tests.export.serving.conftest import FILES, running_server
from tests.forked import run_forked

TEXT = (ROOT / "docs" / "serving.md").read_text()
# How signatures of problems other than classes begin.
_OTHERS = ("segment", "detect", "tag")


@pytest.fixture(scope="module", name="server")
def _server(served):
    arguments = [f"--model={name}={served[name]}" for name in ("piggyback", "piggyback_with_mask")]
    with running_server(*arguments) as server:
        yield server


@pytest.fixture(name="address")
def _address(server):
    return f"http://localhost:{server.rest}"


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photo.jpg").write_bytes(FILES[1])
    return folder


def _code(language, containing):
    """Returns the block in this language that contains a text."""
    (code,) = [code for code in re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.M | re.S) if containing in code]
    return code


@pytest.fixture(scope="module", name="best")
def _best(small):
    """The best label of the photo for the second task."""
    signature = small.loaded().signatures["encoded"]
    found = signature(image_bytes=tf.constant(FILES[1:2]), task=tf.constant([small.packs[1].task]))
    return found["labels"].numpy()[0, 0].decode()


def _tensors(text):
    """Returns name, type and rank of the tensors in a cell of the table."""
    found = re.findall(r"`(\w+)` (\w+) \[([^]]*)\]", text)
    return {name: (dtype, shape.count(",") + 1) for name, dtype, shape in found}


def _rows(model):
    """Returns a model's rows of the table by the name of the signature."""
    rows = re.findall(r"^\| `(piggyback\w*)` \| `(\w+)` \| (.*?) ?\| (.*?) \|$", TEXT, re.M)
    return {name: cells for each, name, *cells in rows if each == model}


def _agree(cells, signature):
    """Compares a row with a signature."""
    for cell, tensors in zip(
        cells, (signature.structured_input_signature[1], signature.structured_outputs), strict=True
    ):
        assert _tensors(cell) == {key: (t.dtype.name, t.shape.rank) for key, t in tensors.items()}


def test_the_table_of_signatures(small):
    folders = {"piggyback": small.packed, "piggyback_with_mask": small.packed.parent / "with_mask" / "1"}
    for model, folder in folders.items():
        signatures = dict(tf.saved_model.load(str(folder)).signatures.items())
        rows = {name: cells for name, cells in _rows(model).items() if not name.startswith(_OTHERS)}
        assert rows.keys() == signatures.keys()
        for name, cells in rows.items():
            _agree(cells, signatures[name])


@pytest.mark.slow
@pytest.mark.parametrize(("export", "kind"), [("mixed", "segment"), ("found_boxes", "detect")])
def test_the_signatures_of_other_problems_in_the_table(export, kind, request):
    signatures = dict(request.getfixturevalue(export).loaded().signatures.items())
    rows = {name: cells for name, cells in _rows("piggyback").items() if name.startswith(kind)}
    sizes = {name: re.sub(r"[0-9]+x[0-9]+$", "HxW", name) for name in signatures if name.startswith(kind)}
    assert set(sizes.values()) == rows.keys() == {kind, f"{kind}_HxW"}
    for name, row in sizes.items():
        _agree(rows[row], signatures[name])


def test_the_server_answers_with_the_same_table(address):
    with urllib.request.urlopen(f"{address}/v1/models/piggyback/metadata") as answer:
        found = json.load(answer)
    assert found["model_spec"] == {"name": "piggyback", "signature_name": "", "version": "2"}
    signatures = found["metadata"]["signature_def"]["signature_def"]
    rows = {name: cells for name, cells in _rows("piggyback").items() if not name.startswith(_OTHERS)}
    assert signatures.keys() == rows.keys()
    for name, cells in rows.items():
        for cell, side in zip(cells, ("inputs", "outputs"), strict=True):
            assert _tensors(cell) == {
                key: (tf.as_dtype(each["dtype"].removeprefix("DT_").lower()).name, len(each["tensor_shape"]["dim"]))
                for key, each in signatures[name][side].items()
            }


def test_every_flag_is_named():
    options = [*dataclasses.fields(ExportOptions), *dataclasses.fields(ServingOptions)]
    assert [field.name for field in options if f"`--{field.name}`" not in TEXT] == []


def test_the_call_without_a_client(address, folder, small, best):
    code = _code("python", "urllib.request").replace("http://localhost:8501", address)
    code = code.replace('"birds"', repr(small.packs[1].task)).replace('"photo.jpg"', repr(str(folder / "photo.jpg")))
    done = run_forked("-c", code)
    assert done.returncode == 0, done.stderr
    assert best in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_calls_of_curl(address, folder, small, best):
    task = small.packs[1].task
    code = _code("bash", "curl").replace("http://localhost:8501", address).replace('"birds"', f'"{task}"')
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    decoder, answers, rest = json.JSONDecoder(), [], done.stdout
    while rest:
        answer, end = decoder.raw_decode(rest)
        answers.append(answer["outputs"])
        rest = rest[end:].strip()
    assert answers[0]["labels"][0][0] == best
    assert (answers[0]["task_ok"], answers[0]["image_ok"]) == ([True], [True])
    assert answers[1]["names"] == [pack.task for pack in small.packs]


def test_the_program_over_grpc(server, folder, small, best):
    (folder / "predict.py").write_text(_code("python", "PredictionServiceStub"))
    done = run_forked("predict.py", f"localhost:{server.grpc}", small.packs[1].task, "photo.jpg", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {
        name: ast.literal_eval(rest) for name, _, rest in (line.partition(" ") for line in done.stdout.splitlines())
    }
    assert found["labels"][0][0].decode() == best
    assert (found["task_ok"], found["image_ok"]) == ([True], [True])


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_the_program_in_java(address, folder, small, best):
    (folder / "Predict.java").write_text(_code("java", "Predict"))
    for task, status in ((small.packs[1].task, 0), ('"', 1)):
        command = ["java", "Predict.java", address, task, "photo.jpg"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        assert done.returncode == status, done.stdout + done.stderr
        if not status:
            assert json.loads(done.stdout)["outputs"]["labels"][0][0] == best
