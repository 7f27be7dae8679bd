"""The command `farm`: real trainings of a table, one of which is killed with the farm, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from piggyback_tf.packs import find
from tests.run_command import ROOT, run_command

FLAGS = (
    *("--backbone=shapesnet", "--batch_size=128", "--augment_train=resize(32,32)", "--notensorboard"),
    "--chance_epochs=0",
)


def _table(folder, text):
    path = folder / "tasks.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("task,data,epoch\na,digits,1\n", (), "Column 'epoch' of .* is no flag of `train`. Did you mean 'epochs'"),
        ("task,data,output_dir\na,digits,x\n", (), "Column 'output_dir' of .* is no flag of `train`"),
        ("task,data\na,digits\n", ("--data=digits",), "--data is for one training"),
        ("task,data\na,digits\n", ("--notask_agnostic",), "--task_agnostic is for one training"),
        ("task,data\na,digits\n", ("--row=1",), "--row=1: the table has 1 row, the last of which is 0"),
        ("task,data\na,digits\n", ("--jobs=0",), "jobs"),
        ("task,data\na,digits\n", ("--cpus=2",), "--cpus is for --engine=ray"),
        ("task,data\na,digits\n", ("--engine=ray", "--row=0"), "Ray starts all rows itself"),
        ("task,data\na,digits\n", ("--epoch=3",), "There is no flag --epoch. Did you mean --epochs"),
    ],
)
def test_what_is_wrong_with_all_rows_is_said_at_once(text, flags, message, tmp_path):
    output = tmp_path / "out"
    status, lines, errors, loaded = run_command("farm", _table(tmp_path, text), f"--output_dir={output}", *flags)
    assert (status, lines, loaded) == (2, [], False)
    assert re.search(message, errors), errors
    assert not (output / "tasks").exists()


def test_the_help_lists_no_flag_that_is_refused():
    _, lines, _, _ = run_command("farm", "--help")
    text = "\n".join(lines)
    assert "--backbone:" in text
    assert not re.search(r"(?m)^ *--(\[no\])?(data|tasks?|task_agnostic|forward_transfer):", text)


@pytest.mark.slow
def test_a_table_is_learned_though_the_farm_is_killed(tmp_path):
    table = _table(
        tmp_path,
        'task,data,epochs\nlow,digits:0-4,3\nbad,folder:/nothing,\nhigh,digits:5-9,1\n"zero, one",digits:0-1,1\n',
    )
    output = tmp_path / "out"
    command = [sys.executable, "-m", "piggyback_tf", "farm", str(table), f"--output_dir={output}", "--jobs=2", *FLAGS]
    farm = subprocess.Popen(command, cwd=ROOT)
    log = output / "tasks" / "low" / "log.txt"
    while not log.exists() or "epoch 1/3" not in log.read_text():
        assert farm.poll() is None
        time.sleep(0.1)
    os.kill(farm.pid, signal.SIGKILL)
    farm.wait()
    status, lines, errors, loaded = run_command(*command[3:], "--json")
    assert (status, loaded) == (2, False), errors
    answer = json.loads("\n".join(lines))
    rows = {row["task"]: row for row in answer["rows"]}
    assert [row["status"] for row in rows.values()] == ["done", "refused", "done", "done"]
    assert "There is no folder '/nothing'" in rows["bad"]["error"]
    assert rows["low"]["attempts"] == 2, "the one that was killed counts"
    printed = re.findall(r"epoch (\d)/3: loss", log.read_text())
    assert sorted(printed) == ["1", "2", "3"], "no completed epoch is trained twice"
    assert re.search(r"4 of 4, ", errors) and "about " in errors
    packs = [Path(path).name for path in find.find_packs([answer["packs"]])]
    assert packs == ["high.task.safetensors", "low.task.safetensors", "zero, one.task.safetensors"]
    # A row of a cluster's array, by itself, is the same: of one that is done nothing is trained again.
    # Whether it answers in JSON is no setting of a training.
    state = (output / "tasks" / "low" / "state.json").read_text()
    status, lines, _, _ = run_command(*command[3 : -len(FLAGS) - 1], "--row=0", *FLAGS)
    assert status == 0 and lines[0].startswith("1 of 1, low: ")
    assert (output / "tasks" / "low" / "state.json").read_text() == state
    # And a run alone gives the same pack.
    alone = (
        *("train", "--task=low", "--data=digits:0-4", "--epochs=3", f"--output_dir={tmp_path / 'alone'}"),
        *FLAGS,
    )
    assert run_command(*alone)[0] == 0
    expected, found = (load_file(folder / "low.task.safetensors") for folder in (tmp_path / "alone", output / "packs"))
    assert list(expected) == list(found)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)
