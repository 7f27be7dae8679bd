"""Rows side by side: what is tried again, what is not, and what ends with what. `train` is a stand-in that obeys."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from piggyback_tf.farm import FarmError, RowState, TaskRow, learn_rows, pool, read_state
from piggyback_tf.farm.pool import Farm, Running
from piggyback_tf.farm.state import folder_of_row
from piggyback_tf.files import folder_lock

# Does what --data says, and notes that it ran.
STAND_IN = """
import json, os, signal, sys, time
flags = dict(each[2:].split("=", 1) for each in sys.argv[1:] if "=" in each)
os.makedirs(flags["output_dir"], exist_ok=True)
with open(os.path.join(flags["output_dir"], "ran"), "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('TF_NUM_INTRAOP_THREADS')} {flags.get('epochs')}\\n")
ran = len(open(os.path.join(flags["output_dir"], "ran")).readlines())
print("told", file=sys.stderr)
kind, _, number = flags["data"].partition(":")
if kind == "wrong":
    print(json.dumps({"error": "There is no such data."}))
    sys.exit(2)
if kind == "fault":
    sys.exit(70)
if kind == "dies" and ran <= int(number):
    os.kill(os.getpid(), signal.SIGKILL)
if kind == "waits":
    time.sleep(float(number))
if kind == "meets":
    folder, end = os.path.dirname(sys.argv[0]), time.monotonic() + 60
    open(os.path.join(folder, f"here{os.getpid()}"), "w").close()
    while len([name for name in os.listdir(folder) if name.startswith("here")]) < int(number):
        if time.monotonic() > end:
            sys.exit(70)
        time.sleep(0.05)
open(os.path.join(flags["output_dir"], "metrics.json"), "w").close()
"""


@pytest.fixture(autouse=True, name="train")
def _train(tmp_path, monkeypatch):
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(pool, "TRAIN", (str(tmp_path / "stand_in.py"),))


def rows_of(*data):
    return [TaskRow(f"t{place}", place + 2, (f"--task=t{place}", f"--data={each}")) for place, each in enumerate(data)]


def ran(folder, task):
    path = folder_of_row(folder, task).run / "ran"
    return path.read_text().splitlines() if path.exists() else []


def learn(folder, rows, jobs=2, **settings):
    return learn_rows(rows, Farm(folder, **settings), jobs, lambda row, state: None)


def test_what_dies_is_tried_again_and_what_is_wrong_is_not(tmp_path):
    rows = rows_of("fine", "wrong", "dies:2", "dies:9", "fault")
    states = learn(tmp_path, rows, attempts=3, flags=["--epochs=7"], threads=1)
    assert [states[row.task].status for row in rows] == ["done", "refused", "done", "failed", "failed"]
    assert [states[row.task].attempts for row in rows] == [1, 1, 3, 3, 1]
    assert [len(ran(tmp_path, row.task)) for row in rows] == [1, 1, 3, 3, 1]
    assert states["t1"].error == "There is no such data."
    assert states["t3"].error.startswith("The training was ended by SIGKILL") and "t3/log.txt" in states["t3"].error
    assert "has a fault" in states["t4"].error
    assert ran(tmp_path, "t0")[0].endswith(" 1 7"), "its threads, and the flags of all rows"
    assert folder_of_row(tmp_path, "t2").log.read_text() == "told\n" * 3
    # Once more: what is done is not begun, all else is.
    states = learn(tmp_path, rows, attempts=1, flags=["--epochs=7"])
    assert [states[row.task].attempts for row in rows] == [1, 2, 3, 4, 2]
    assert [len(ran(tmp_path, row.task)) for row in rows] == [1, 2, 3, 4, 2]


def test_what_is_done_is_asked_again_with_other_flags_and_without_its_run(tmp_path):
    (row,) = rows_of("fine")
    for flags, attempts in [(["--epochs=7"], 1), (["--epochs=7"], 1), (["--epochs=8"], 2), (["--epochs=8"], 2)]:
        assert learn(tmp_path, [row], flags=flags)["t0"].attempts == attempts
    (folder_of_row(tmp_path, "t0").run / "metrics.json").unlink()
    assert learn(tmp_path, [row], flags=["--epochs=8"])["t0"].attempts == 3


def test_so_many_run_at_once(tmp_path):
    states = learn(tmp_path, rows_of("meets:3", "meets:3", "meets:3"), jobs=3)
    assert {state.status for state in states.values()} == {"done"}


def test_one_job_runs_one_after_another(tmp_path):
    began = time.monotonic()
    states = learn(tmp_path, rows_of("waits:0.5", "waits:0.5"), jobs=1)
    assert {state.status for state in states.values()} == {"done"}
    assert time.monotonic() - began >= 1


def test_who_ends_the_farm_ends_what_runs(tmp_path):
    rows, caught = rows_of("fine", "waits:60", "waits:60", "waits:60"), []

    def told(row, state):
        while len(ran(tmp_path, "t1")) < 1:
            time.sleep(0.05)
        raise KeyboardInterrupt

    def run():
        try:
            learn_rows(rows, Farm(tmp_path), 2, told)
        except KeyboardInterrupt as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert not thread.is_alive() and caught
    process = int(ran(tmp_path, "t1")[0].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert not ran(tmp_path, "t3"), "and nothing is begun"
    assert folder_of_row(tmp_path, "t1").read().attempts == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: no other system ends a process with its parent")
def test_a_farm_that_is_killed_takes_its_trainings_with_it(tmp_path):
    program = (
        "import sys; from piggyback_tf.farm import TaskRow, learn_rows, pool; from piggyback_tf.farm.pool import Farm;"
        "from pathlib import Path; pool.TRAIN = (sys.argv[1],);"
        "row = TaskRow('t0', 2, ('--data=waits:60',)); learn_rows([row], Farm(Path(sys.argv[2])), 1, print)"
    )
    command = [sys.executable, "-c", program, tmp_path / "stand_in.py", tmp_path]
    farm = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while not ran(tmp_path, "t0"):
        assert farm.poll() is None
        time.sleep(0.05)
    farm.kill()
    farm.wait()
    process, end = int(ran(tmp_path, "t0")[0].split()[0]), time.monotonic() + 10
    while Path(f"/proc/{process}").exists() and "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text():
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)


def test_a_row_on_which_somebody_else_works_is_waited_for(tmp_path):
    (row,) = rows_of("fine")
    files = folder_of_row(tmp_path, "t0")
    files.folder.mkdir(parents=True)
    with folder_lock(files.folder):
        state = learn(tmp_path, [row], patience=0.0)["t0"]
        assert state.status == "failed" and "Another process" in state.error
        assert not ran(tmp_path, "t0") and not (files.folder / "state.json").exists(), "what the other writes counts"
        waiting = threading.Thread(target=learn, args=(tmp_path, [row]))
        waiting.start()
        waiting.join(1.0)
        assert waiting.is_alive()
    waiting.join(60)
    assert files.read().status == "done" and files.read().machine


def test_attempts_count_whose_end_nobody_saw(tmp_path):
    """Where a machine dies, another one begins the row anew, and finds that an attempt was begun."""
    (row,) = rows_of("fine")
    files = folder_of_row(tmp_path, "t0")
    files.folder.mkdir(parents=True)
    files.write(RowState(attempts=5))
    state = Farm(tmp_path, attempts=3).learn(row, Running(), before=2)
    assert state.status == "failed" and "was ended, 3 times" in state.error
    assert state == files.read() and not ran(tmp_path, "t0")
    assert Farm(tmp_path, attempts=3).learn(row, Running(), before=3).status == "done"


def test_a_damaged_state_is_named(tmp_path):
    state = folder_of_row(tmp_path, "t0")
    state.folder.mkdir(parents=True)
    (state.folder / "state.json").write_text(json.dumps({"status": "done", "foo": 1}))
    with pytest.raises(FarmError, match=r"state\.json' is damaged.*Delete it"):
        read_state(state.folder / "state.json")
    with pytest.raises(FarmError, match="is damaged"):
        learn(tmp_path, rows_of("fine"))


def test_signals_have_names():
    assert pool.what_ended(-signal.SIGTERM) == "SIGTERM"
    assert pool.what_ended(-63) == "signal 63" or pool.what_ended(-63).startswith("SIG")
    assert pool.what_ended(3) == "status 3"
