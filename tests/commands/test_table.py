"""The command `table`: what it prints, writes and refuses, and that it reads what train.py writes."""

import json
import subprocess
import sys

import pytest

from piggyback_tf.__main__ import main
from tests.evaluation.run_folders import sequence, write_sequence, write_single
from tests.run_command import ROOT, run_command


@pytest.fixture(name="runs")
def _runs(tmp_path):
    """A run with one task, and a sequence of two."""
    steps = {"cubs": {"cubs": 22}, "cars": {"cubs": 22, "cars": 15}}
    return [
        write_single(tmp_path / "cubs", "cubs", {"classifier_only": 40.0, "piggyback": 20.0}),
        write_sequence(tmp_path / "packnet", sequence("packnet", steps)),
    ]


def test_it_prints_without_tensorflow(runs, tmp_path):
    status, lines, errors, loaded = run_command(
        "table", "--layout=survey", *runs, f"--output={tmp_path / 'out'}", f"--plots={tmp_path / 'plots'}"
    )
    assert (status, errors, loaded) == (0, "", False)
    assert lines[0] == "Methods on vgg16:"
    assert any(line.startswith("| packnet ") and " 22.00 |" in line for line in lines)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["survey.csv", "survey.md", "survey.tex"]
    assert (tmp_path / "out" / "survey.md").read_text().splitlines() == lines
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "error_and_bytes.png", "errors_packnet_forward.png", "zeros.png",
    ]  # fmt: skip


def test_formats(runs, capsys):
    printed = {}
    for name in ("markdown", "csv", "latex", "all"):
        assert main(["table", "--layout=paper2", *runs, f"--format={name}"]) == 0
        printed[name] = capsys.readouterr()
    assert printed["csv"].out.startswith("task,Classifier Only,PackNet ↓,Piggyback\ncubs,40.0,22.0,20.0\n")
    assert "PackNet prunes the base" in printed["csv"].err, "notes are no CSV"
    assert printed["latex"].out.startswith(r"\begin{table}")
    assert printed["all"].out == "\n".join(printed[name].out for name in ("markdown", "csv", "latex"))


def test_json(runs, capsys):
    assert main(["table", "--layout=paper2", *runs, "--json"]) == 0
    output = capsys.readouterr()
    table = json.loads(output.out)
    assert (table["layout"], output.err) == ("paper2", "")
    assert table["header"] == ["task", "Classifier Only", "PackNet ↓", "Piggyback"]
    numbers = [{"value": value, "style": "percent"} for value in (40.0, 22.0, 20.0)]
    assert table["rows"][0] == ["cubs", *numbers]
    assert table["rows"][1][1] is None
    assert any("PackNet prunes the base" in note for note in table["notes"])


def test_a_file_of_the_benchmark(tmp_path, capsys):
    rows = {"piggyback_norm/forward/1": sequence("piggyback", {"a": {"a": 10}, "b": {"a": 10, "b": 20}})}
    (tmp_path / "methods.json").write_text(json.dumps({"machine": {}, "rows": rows}))
    assert main(["table", "--layout=survey", str(tmp_path / "methods.json")]) == 0
    assert "| piggyback_norm | ↓     |     1 | 10.00 | 20.00 |  15.00 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layout=survey", "nowhere"], "There is no folder or file 'nowhere'."),
        (
            ["--layout=paper7", "{packnet}"],
            "Layout paper7 has the methods piggyback, and none of the runs is of these.",
        ),
        (["--layout=survey", "{cubs}", "--output={file}"], "this is a file; name a folder."),
        (["--layout=survey", "{cubs}", "--plots={cubs}/no/where"], "there is no folder"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(runs, tmp_path, capsys, arguments, message):
    (tmp_path / "file").write_text("")
    places = {"cubs": runs[0], "packnet": runs[1], "file": tmp_path / "file"}
    assert main(["table", *(argument.format(**places) for argument in arguments)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("python -m piggyback_tf table: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


def test_a_damaged_pack(runs, tmp_path, capsys):
    pack = tmp_path / "cubs" / "cubs.task.safetensors"
    pack.write_bytes(pack.read_bytes()[:100])
    assert main(["table", "--layout=survey", *runs]) == 2
    assert "cubs.task.safetensors" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_train_py(tmp_path, capsys):
    quick = ["--backbone=shapesnet", "--epochs=1", "--batch_size=256", "--chance_epochs=0", "--verbose=0"]
    quick += ["--augment_train=resize(32,32)", "--augment_eval=resize(32,32)", "--mask_budget=1"]
    for name, flags in {
        "single": ["--data=digits", "--task=a", "--baseline=classifier_only", "--baseline=finetune"],
        "packnet": ["--tasks=a=digits,b=digits", "--method=packnet", "--epochs=2"],
        "piggyback": ["--tasks=a=digits,b=digits", "--seed=1"],
    }.items():
        command = [sys.executable, str(ROOT / "train.py"), *quick, *flags, f"--output_dir={tmp_path / name}"]
        subprocess.run(command, check=True, capture_output=True, timeout=900)
    runs = [str(tmp_path / name) for name in ("single", "packnet", "piggyback")]
    for layout in ("paper2", "paper4", "paper6", "paper7", "survey"):
        assert (
            main(["table", f"--layout={layout}", *runs, f"--output={tmp_path}", f"--plots={tmp_path / 'plots'}"]) == 0
        )
    steps = [
        json.loads((tmp_path / name / "metrics.json").read_text())["methods"]["piggyback"]["steps"]
        for name in ("single", "piggyback")
    ]
    means = sum(own[-1]["errors"]["a"]["top1_error"] for own in steps) / 2
    rows = [line.split(",") for line in (tmp_path / "paper2.csv").read_text().splitlines()]
    assert rows[0] == ["task", "Classifier Only", "PackNet ↓", "Piggyback", "Piggyback std", "Individual Networks"]
    assert float(rows[1][3]) == pytest.approx(means, abs=1e-5)
    # The sequence's own sizes: masks as plain bits.
    assert rows[3][3] == f"1 ({steps[1][-1]['bytes']['system'] / 1e6:.3g} MB)"
    assert (tmp_path / "plots" / "zeros.png").is_file()
    capsys.readouterr()
