"""The notebooks of the documentation run from top to bottom, and show what they promise.

`PIGGYBACK_RECORD_NOTEBOOKS=1 python -m pytest -m slow tests/test_notebooks.py` writes their outputs into them.
"""

import contextlib
import os
import shutil
import signal
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
# TensorFlow Serving's server by its name and flags; behind them is that of the tests, which listens on loopback alone.
STAND_IN = """\
#!{python}
import os, re, sys

flags = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
with open(flags.pop("model_config_file")) as file:
    models = re.findall(r'name: "(.+?)" base_path: "(.+?)"', file.read())
arguments = [f"--model={{name}}={{folder}}" for name, folder in models]
arguments += [f"--grpc_port={{flags.pop('port')}}", f"--rest_port={{flags.pop('rest_api_port')}}"]
assert models and not flags, flags
with open({started!r}, "w") as file:
    file.write(str(os.getpid()))
os.chdir({root!r})
os.execv(sys.executable, [sys.executable, "-m", "tests.export.serving.prediction_server", *arguments])
"""


@pytest.fixture(name="run")
def _run(tmp_path, monkeypatch):
    """A function that runs a notebook in an empty folder, and returns what its cells print."""
    programs, started = tmp_path / "programs", tmp_path / "started"
    programs.mkdir()
    if shutil.which("tensorflow_model_server") is None:
        server = programs / "tensorflow_model_server"
        server.write_text(STAND_IN.format(python=sys.executable, started=str(started), root=str(ROOT)))
        server.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "PIGGYBACK_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    (tmp_path / "work").mkdir()

    def run(path):
        book = nbformat.read(path, as_version=4)
        where = {"metadata": {"path": str(tmp_path / "work")}}
        NotebookClient(book, timeout=300, record_timing=False, coalesce_streams=True, resources=where).execute()
        if os.environ.get("PIGGYBACK_RECORD_NOTEBOOKS"):
            nbformat.write(book, path)
        outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
        return "".join(output.get("text", "") for output in outputs), outputs

    yield run
    if started.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(started.read_text()), signal.SIGKILL)


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["own_photos", "two_tasks_on_a_server"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_there_and_say_nothing_of_a_machine(path):
    """Readers of the site see outputs as they were, but no paths of whoever ran it."""
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    text = path.read_text()
    assert any(cell.outputs for cell in book.cells if cell.cell_type == "code")
    assert not [word for word in ("/tmp/", "/home/", "Traceback", '"stderr"') if word in text]


@pytest.mark.slow
def test_own_photos(run):
    text, outputs = run(ROOT / "docs/notebooks/own_photos.ipynb")
    assert any("image/png" in output.get("data", {}) for output in outputs)
    right, _, photos = text.partition(" test photos are right.")[0].rsplit("\n", 1)[1].split()
    assert int(right) > 0.9 * int(photos) > 90


@pytest.mark.slow
def test_two_tasks_on_a_server(run):
    text, _ = run(ROOT / "docs/notebooks/two_tasks_on_a_server.ipynb")
    assert "AVAILABLE" in text
    assert "3.png: 3 with" in text
    assert "8.png: 8 with" in text
