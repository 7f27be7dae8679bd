"""The command `report`: what it answers, writes and refuses, without TensorFlow."""

import json

import pytest

from piggyback_tf.__main__ import main
from tests.evaluation.run_folders import write_single
from tests.packs.helpers import make_pack
from tests.run_command import run_command


@pytest.fixture(name="run")
def _run(tmp_path):
    return write_single(tmp_path / "cubs", "cubs", {"classifier_only": 40.0, "piggyback": 20.0})


def test_it_writes_a_page_without_tensorflow(run, tmp_path):
    status, lines, errors, loaded = run_command("report", run, f"--output={tmp_path / 'page.html'}")
    assert (status, errors, loaded) == (0, "", False)
    size = (tmp_path / "page.html").stat().st_size
    assert lines == [f"{tmp_path / 'page.html'}: 2 tasks, {size:,} bytes. Open it in a browser."]
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_the_answer_in_json(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", run, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["file"], answer["problems"], answer["notes"]) == ("report.html", [], [])
    assert answer["bytes"] == (tmp_path / "report.html").stat().st_size
    assert [one["method"] for one in answer["tasks"]] == ["classifier_only", "piggyback"]
    assert answer["tasks"][1]["errors"]["test"]["top1_error"] == 20.0
    assert (answer["tasks"][1]["wrong_images"], answer["tasks"][1]["shown_images"]) == (None, 0)
    # Its own page may be written again.
    assert main(["report", run]) == 0


def test_what_is_good_is_shown_beside_what_is_not(run, tmp_path, capsys):
    assert main(["report", run, "nowhere", f"--output={tmp_path / 'page.html'}", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "python -m piggyback_tf report: 'nowhere': No such file or directory.\n"
    answer = json.loads(printed.out)
    assert (len(answer["tasks"]), answer["problems"]) == (2, ["'nowhere': No such file or directory."])
    assert "No such file or directory" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("settings", [{}, {"task": None, "data": "digits"}])
def test_a_run_that_is_not_finished(settings, run, tmp_path, capsys):
    folder = tmp_path / "cubs"
    method = json.loads((folder / "metrics.json").read_text())["methods"]["piggyback"]
    (folder / "result.json").write_text(json.dumps(method))
    (folder / "metrics.json").unlink()
    known = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(known | settings))
    assert main(["report", run, f"--output={tmp_path / 'page.html'}", "--json"]) == 0
    printed = capsys.readouterr()
    assert "is not finished: there is no metrics.json in it. What is there of it is shown." in printed.err
    answer = json.loads(printed.out)
    assert [(one["task"], one["errors"]["test"]["top1_error"]) for one in answer["tasks"]] == [("cubs", 20.0)]
    (folder / "result.json").unlink()
    assert main(["report", run, f"--output={tmp_path / 'page.html'}"]) == 2
    assert "has not trained for a whole epoch" in capsys.readouterr().err


def test_a_training_that_stopped_shows_its_epochs(run, tmp_path, capsys):
    import numpy as np

    from piggyback_tf.files import write_arrays

    folder = tmp_path / "cubs"
    (folder / "metrics.json").unlink()
    progress = {"epochs_done": 2, "best_epoch": 0, "best_score": [0.5, 1.0], "seconds": 3.0}
    progress["history"] = {"error": [0.5, 0.25], "val_error": [0.5, 0.75]}
    state = folder / "training_state.safetensors"
    write_arrays(state, {"x": np.zeros(1)}, {"progress": json.dumps(progress)})
    assert main(["report", run, f"--output={tmp_path / 'page.html'}", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["tasks"]
    assert "2 of 30 epochs" in one["missing"][0]
    assert "cubs, validation from 50 to 75" in (tmp_path / "page.html").read_text()
    state.write_bytes(b"x" * 50)
    assert main(["report", run, f"--output={tmp_path / 'page.html'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "is no folder of a run of train: there is no settings.json in it, and no pack."),
        (["nowhere"], "'nowhere': No such file or directory."),
        (["{pack}", "--images=many"], "--images: must be an integer from 0 to 1000, not 'many'"),
        (["{pack}", "--images=-1"], "must be an integer from 0 to 1000"),
        (["{pack}", "--output="], "--output= is empty"),
        (["{pack}", "--output=gs://bucket/page.html"], "this is a URL; name a file of this machine."),
        (["{pack}", "--output={folder}"], "this is a folder; name a file in it."),
        (["{pack}", "--output={folder}/no/where.html"], "there is no folder"),
        (["{pack}", "--output={pack}"], "this is there already, and no page of this command."),
        (["{pack}", "--output={empty}"], "this is there already, and no page of this command."),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(arguments, message, tmp_path, capsys):
    places = {"folder": tmp_path / "folder", "pack": tmp_path / "a.task.safetensors", "empty": tmp_path / "empty"}
    places["folder"].mkdir()
    places["empty"].touch()
    make_pack().save(places["pack"])
    before = places["pack"].read_bytes()
    assert main(["report", *(argument.format(**places) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert places["pack"].read_bytes() == before
