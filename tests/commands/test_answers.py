"""Every command answers in JSON where it is asked to, and ends with a status by one rule."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.__main__ import main
from piggyback_tf.commands.answers import Answer, UsageError, conclude, to_json
from piggyback_tf.packs import PackError
from tests.packs.helpers import make_pack, pack_of, trained_model
from tests.run_command import ROOT, run_command

COMMANDS = [
    *("evaluate", "predict", "inspect", "compare", "verify", "convert"),
    *("merge", "push", "pull", "table", "backbones", "cache", "train"),
]
EXPORTS = [["export", kind] for kind in ("saved_model", "serving", "litert", "verify")]


def _answer(capsys, *arguments, status=0):
    """Runs a command with --json; all of stdout must be one document."""
    capsys.readouterr()
    assert main([*map(str, arguments), "--json"]) == status
    return json.loads(capsys.readouterr().out)


@pytest.fixture(name="pack")
def _pack(tmp_path):
    make_pack().save(tmp_path / "birds.task.safetensors")
    return tmp_path / "birds.task.safetensors"


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), *EXPORTS], ids=" ".join)
def test_every_command_has_it(command):
    status, lines, errors, loaded = run_command(*command, "--help")
    assert (status, errors, loaded) == (0, "", False)
    assert "json" in "\n".join(lines)


def test_answers_without_tensorflow(pack, tmp_path, capsys):
    (found,) = _answer(capsys, "backbones", "shapesnet")
    assert (found["name"], found["image_size"], found["weights"]) == ("shapesnet", 32, ["shipped", "random"])
    other = tmp_path / "b"
    make_pack(seed=1, task="fish").save(other)
    found = _answer(capsys, "compare", pack, other)
    assert (found["a"], found["b"]["task"]) == ({"file": str(pack), "task": "birds"}, "fish")
    assert [layer["path"] for layer in found["layers"]] == ["conv/kernel", "block/dense/kernel"]
    total = found["total"]
    assert total["weights"] == 163 == sum(total[part] for part in ("both", "only_a", "only_b", "neither"))
    found = _answer(capsys, "convert", pack, f"--output={tmp_path / 'small'}", "--float16")
    assert found["from"]["bytes"] == pack.stat().st_size
    assert found["to"] == {
        "file": str(tmp_path / "small"),
        "bytes": (tmp_path / "small").stat().st_size,
        "format_version": 4,
        "dtype": "float16",
        "codec": "best",
    }
    (found,) = _answer(capsys, "inspect", pack, "--details")
    assert found["task"] == "birds"


@pytest.mark.slow
def test_answers_of_a_network(tmp_path, capsys):
    from piggyback_tf.backbones import load_backbone

    backbone, pack, fish = load_backbone("shapesnet"), tmp_path / "a", tmp_path / "fish"
    pack_of(trained_model(backbone, classes=2), backbone, "a", 2).save(pack)
    make_pack(task="fish", base_name="shapesnet", base_weights="shipped", image_size=32).save(fish)
    images = [tmp_path / "0.png", tmp_path / "no.png", tmp_path / "1.png"]
    for path in images[::2]:
        Image.new("RGB", (40, 40), (200, 10, 90)).save(path)
    images[1].write_text("no image")
    first, broken, last = _answer(capsys, "predict", pack, *images, "--top_k=2", status=2)
    assert first["classes"] == last["classes"]
    assert sum(each["probability"] for each in first["classes"]) == pytest.approx(1, abs=1e-6)
    assert broken["image"] == str(images[1])
    assert "Broken image" in broken["error"]
    # The question is whether packs are good: no is an answer, a missing file is none.
    good, bad = _answer(capsys, "verify", pack, fish, status=1)
    assert (good["good"], good["error"], bad["good"]) == (True, None, False)
    assert "was trained on another base" in bad["error"]
    good, absent = _answer(capsys, "verify", pack, tmp_path / "none", status=2)
    assert (good["good"], absent["good"]) == (True, None)
    assert absent["error"] == f"'{tmp_path / 'none'}': No such file or directory."
    found = _answer(capsys, "merge", pack, f"--output={tmp_path / 'a.keras'}")
    assert found["bytes"] == (tmp_path / "a.keras").stat().st_size
    assert len(found["classes"]) == 2
    for split in ("train", "test"):
        for name in found["classes"]:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for index in range(4):
                pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / name / f"{index}.png")
    found = _answer(capsys, "evaluate", pack, f"--data=folder:{tmp_path / 'data'}")
    assert (found["images"], found["split"], found["skipped_images"]) == (8, "test", 0)
    assert 0 <= found["top1_error_low"] <= found["top1_error"] <= found["top1_error_high"] <= 100


WRONG = [
    (["predict"], "The following arguments are required: PACK, IMAGE. (python -m piggyback_tf predict --help)"),
    (["predict", "{pack}", "a.png", "--topk=3"], "There is no --topk. Did you mean --top_k or --packs? ("),
    (["predict", "{pack}", "a.png", "--top_k=none"], "Argument --top_k: must be an integer of at least 1"),
    (["compare", "a", "b", "c"], "There is no place for the argument 'c'. ("),
    (["predikt", "{pack}"], "Unknown command 'predikt'. Did you mean 'predict'"),
    (["export", "lite"], "Unknown kind 'lite'. Did you mean 'litert'"),
    (["inspect", "{pack}", "{pack}x"], "birds.task.safetensorsx"),
    (["backbones", "none*"], "No backbone matches 'none*'."),
    (["convert", "{pack}", "--output="], "--output= is empty, perhaps of a variable that is not set."),
    (["train", "--epochs=many"], "--epochs=many"),
    (["train", "--none=1"], "There is no flag --none"),
    (["export", "saved_model", "--packs={pack}x", "--output={pack}y"], "birds.task.safetensorsx"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=[" ".join(given) for given, _ in WRONG])
def test_mistakes_are_all_said_alike(arguments, sentence, pack):
    arguments = [argument.format(pack=pack) for argument in arguments]
    status, lines, errors, _ = run_command(*arguments)
    assert (status, errors.count("\n")) == (2, 1)
    assert errors.startswith("python -m piggyback_tf")
    assert sentence in errors
    status, lines, errors, _ = run_command(*arguments, "--json")
    assert status == 2
    document = json.loads("\n".join(lines))
    assert sentence in errors
    # What could be answered is.
    if arguments[0] != "inspect":
        assert f": {document['error']}\n" in errors


def test_without_arguments():
    status, lines, errors, loaded = run_command()
    assert (status, lines, loaded) == (2, [], False)
    assert errors.startswith("usage: python -m piggyback_tf")
    assert "predict" in errors


def _raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("run", "status", "said"),
    [
        (lambda: Answer([1], "one"), 0, ""),
        (lambda: Answer([1], "one", 1), 1, ""),
        (_raising(UsageError("Wrong.")), 2, "it: Wrong.\n"),
        (_raising(PackError("Wrong.")), 2, "it: Wrong.\n"),
        (_raising(FileNotFoundError(2, "No such file", "a")), 2, "it: 'a': No such file.\n"),
        (_raising(OSError(28, "No space left", "a", None, "b")), 2, "it: 'a' -> 'b': No space left.\n"),
        (_raising(KeyboardInterrupt()), 130, "\nit: interrupted.\n"),
        (_raising(ZeroDivisionError("by zero")), 70, "ZeroDivisionError: by zero\n"),
        (_raising(ModuleNotFoundError("no", name="a_part_of_ours")), 70, "ModuleNotFoundError: no\n"),
        (_raising(ModuleNotFoundError("no", name="matplotlib")), 2, "piggyback_tf[plots]'\n"),
    ],
)
def test_the_rule_of_statuses(run, status, said, capsys):
    assert conclude(run, "it", as_json=False, errors=(PackError,)) == status
    output = capsys.readouterr()
    assert output.err.endswith(said)
    assert output.out == ("one\n" if status < 2 else "")
    assert conclude(run, "it", as_json=True, errors=(PackError,)) == status
    out = capsys.readouterr().out
    if status < 2:
        assert json.loads(out) == [1]
    elif status == 2:
        assert list(json.loads(out)) == ["error"]
    else:
        assert out == ""


def test_what_is_printed_on_the_way_is_no_part_of_the_document(capsys):
    def run():
        print("on the way")
        return Answer({"a": [float("nan"), 1.5, (2,)]})

    assert conclude(run, "it", as_json=True, errors=()) == 0
    output = capsys.readouterr()
    assert (json.loads(output.out), output.err) == ({"a": [None, 1.5, [2]]}, "on the way\n")
    assert json.loads(to_json({"x": float("inf")})) == {"x": None}


FULL = Path("/dev/full")
SHELL = f'"{sys.executable}" -m piggyback_tf '


def _shell(command):
    """Returns exit status and stderr of a command line, whose output is held back as that of any program is."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    return run.returncode, run.stderr


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command", ["inspect {pack}", "inspect {pack} --json", "inspect no --json", "train --help", "-h"]
)
def test_an_answer_that_cannot_be_written_is_none(command, pack):
    status, said = _shell(f"{SHELL}{command.format(pack=pack)} > {FULL}")
    assert status == 2
    assert said.endswith("The output cannot be written: No space left on device.\n")
    assert "Traceback" not in said
    assert "Exception" not in said


@pytest.mark.parametrize("command", ["backbones", "train --helpfull", "-h"])
def test_nobody_reads_the_output(command):
    # The reader ends at once.
    assert _shell(f"{SHELL}{command} | true; exit ${{PIPESTATUS[0]}}") == (141, "")


@pytest.mark.parametrize(("command", "status"), [("inspect {pack}", 0), ("inspect no", 2)])
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_streams_that_are_closed(command, status, closed, pack):
    found, said = _shell(f"{SHELL}{command.format(pack=pack)} {closed}")
    assert found == status
    assert said.count("\n") == (status == 2 and closed == ">&-")
