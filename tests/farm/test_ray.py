"""A farm on Ray: what is refused before a cluster is asked, and twenty trainings of which much is killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from piggyback_tf.farm import FarmError, TaskRow
from piggyback_tf.farm.pool import Farm
from piggyback_tf.farm.ray_cluster import (
    Machine,
    Share,
    _learn,
    _marked,
    _wrong_here,
    fitting_share,
    learn_on_ray,
    machines_of,
)
from tests.run_command import ROOT, run_command

FLAGS = (
    *("--backbone=shapesnet", "--batch_size=128", "--augment_train=resize(32,32)", "--notensorboard"),
    *("--chance_epochs=0", "--epochs=2"),
)
DATA = ("digits:0-1", "digits:2-3")
ROWS = 20


def node_of(name, alive=True, **resources):
    return {"NodeID": name, "NodeManagerAddress": "10.0.0.1", "Alive": alive, "Resources": resources}


def test_rooms_are_those_of_machines_that_are_up():
    machines = machines_of([node_of("a", CPU=8.0, GPU=2.0), node_of("b", CPU=3.0), node_of("c", False, CPU=9.0)])
    assert machines == [Machine("a", "10.0.0.1", 8.0, 2.0), Machine("b", "10.0.0.1", 3.0, 0.0)]
    assert [machine.room(Share(2, 0.0)) for machine in machines] == [4, 1]
    assert [machine.room(Share(2, 0.5)) for machine in machines] == [4, 0]
    assert [machine.room(Share(4, 1.0)) for machine in machines] == [2, 0]


def test_what_a_training_gets_fits_onto_a_machine():
    small, large = Machine("a", "h", 2.0, 0.0), Machine("b", "h", 8.0, 1.0)
    assert fitting_share([small], Share()) == Share(1, 0.0)
    assert fitting_share([small, large], Share()) == Share(1, 1.0), "a GPU, where there are any"
    assert fitting_share([small, large], Share(8, 0.0)) == Share(8, 0.0)
    with pytest.raises(FarmError, match="room for a training with 9 cores and no GPU. They have: 2 cores and no GPU, "):
        fitting_share([small, large], Share(9, 0.0))
    with pytest.raises(FarmError, match="room for a training with 1 core and 2 GPUs"):
        fitting_share([small, large], Share(1, 2.0))


def test_a_client_of_a_cluster_is_sent_to_the_cluster(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://there:10001")
    with pytest.raises(FarmError, match="RAY_ADDRESS=ray://there:10001: the farm runs on a machine of the cluster"):
        learn_on_ray([], Farm(tmp_path), None, Share(), print, print)
    assert not list(tmp_path.iterdir())


def test_a_machine_says_what_it_does_not_see(tmp_path):
    with _marked(tmp_path) as mark:
        assert _wrong_here(mark, tmp_path) == ""
        assert "has no folder '/nothing', in which the farm was started" in _wrong_here(mark, Path("/nothing"))
        (tmp_path / "elsewhere").mkdir()
        elsewhere = tmp_path / "elsewhere" / mark.name
        assert f"does not see the folder '{elsewhere.parent}' of this farm" in _wrong_here(elsewhere, tmp_path)
        row = TaskRow("t0", 2, ("--data=digits",))
        state = _learn(Farm(elsewhere.parent, directory=tmp_path), row, 1, elsewhere)
        assert (state.status, state.attempts) == ("refused", 1) and "does not see" in state.error
    assert not mark.exists()


@pytest.fixture(name="cluster")
def _cluster(monkeypatch):
    """Two nodes on this machine, with room for a training each; they and what Ray writes are gone at the end."""
    # Ray's sockets have 80 characters below this folder, and 107 are allowed: pytest's own would be too long.
    scratch = tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True)
    settings = {"USAGE_STATS_ENABLED": "0", "worker_niceness": "0", "TMPDIR": scratch.name}
    for name, value in settings.items():
        monkeypatch.setenv(f"RAY_{name}", value)
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=1, include_dashboard=False)
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    finally:
        cluster.shutdown()
        scratch.cleanup()


def trainings(output):
    """Returns the processes that train in a folder, each with the one that started it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"--output_dir={output}/tasks/" in (path / "cmdline").read_text():
                status = (path / "status").read_text()
                if "\nState:\tZ" not in status:
                    found[int(path.name)] = int(re.search(r"PPid:\t(\d+)", status)[1])
    return found


def wait_for(condition, farm=None):
    while not (found := condition()):
        assert farm is None or farm.poll() is None, "the farm is over"
        time.sleep(0.2)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_tasks_are_learned_though_worker_node_and_driver_are_killed(tmp_path, cluster):
    table, output = tmp_path / "tasks.csv", tmp_path / "out"
    rows = [f"t{place},{DATA[place % 2]}," for place in range(ROWS)]
    rows[3:3] = ["missing,folder:/nothing,", "wrong,digits,-1"]
    table.write_text("\n".join(["task,data,epochs", *rows]) + "\n")
    command = [sys.executable, "-m", "piggyback_tf", "farm", str(table), f"--output_dir={output}", *FLAGS]
    command += ["--engine=ray"]

    def learned():
        return len(list(output.glob("tasks/*/run/metrics.json")))

    def logs():
        return {path.parent.name: path.read_text() for path in output.glob("tasks/*/log.txt")}

    def begun():
        """Returns the trainings that have completed an epoch."""
        half = [task for task, text in logs().items() if "epoch 1/2: " in text and "epoch 2/2: " not in text]
        now = trainings(output)
        lines = {process: Path(f"/proc/{process}/cmdline").read_text() for process in now}
        return [process for process in now if any(f"/tasks/{task}/" in lines[process] for task in half)]

    # The driver.
    farm = subprocess.Popen(command, cwd=ROOT)
    wait_for(begun, farm)
    os.kill(farm.pid, signal.SIGKILL)
    farm.wait()
    wait_for(lambda: not trainings(output))
    assert learned() < ROWS
    # A worker: Ray starts the row again.
    with (tmp_path / "printed.txt").open("w") as printed:
        farm = subprocess.Popen([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=printed, text=True)
    process = wait_for(begun, farm)[0]
    os.kill(trainings(output)[process], signal.SIGKILL)
    wait_for(lambda: process not in trainings(output), farm)
    # A machine, and another one comes in its place.
    before = learned()
    wait_for(lambda: learned() > before, farm)
    wait_for(begun, farm)
    (node,) = cluster.worker_nodes
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(num_cpus=1)
    answer = json.loads(farm.communicate()[0])
    rows = {row["task"]: row for row in answer["rows"]}
    assert farm.returncode == 2
    assert "There is no folder '/nothing'" in rows["missing"]["error"]
    assert "epochs must be an integer" in rows["wrong"]["error"]
    assert {rows.pop("missing")["status"], rows.pop("wrong")["status"]} == {"refused"}
    assert {row["status"] for row in rows.values()} == {"done"} and len(rows) == ROWS
    assert sum(row["attempts"] for row in rows.values()) >= ROWS + 3
    text = (tmp_path / "printed.txt").read_text()
    assert "Ray: 2 machines, with room for 2 trainings at once, each with 1 core and no GPU." in text
    assert f"{ROWS + 2} of {ROWS + 2}, " in text and " left" in text
    for task, text in logs().items():
        printed = re.findall(r"epoch (\d)/2: loss", text)
        assert sorted(printed) == (["1", "2"] if task in rows else []), f"{task}: {printed}"
    # What is left behind: the cluster as it was, and nothing that runs or that only Ray knows in the folder.
    assert cluster.head_node.remaining_processes_alive()
    assert not trainings(output) and not list(output.glob(".farm-*"))
    # Each pack is that of a run alone.
    for place, data in enumerate(DATA):
        alone = tmp_path / f"alone{place}"
        assert run_command("train", f"--task=t{place}", f"--data={data}", f"--output_dir={alone}", *FLAGS)[0] == 0
        expected = load_file(alone / f"t{place}.task.safetensors")
        for number in range(place, ROWS, 2):
            found = load_file(output / "packs" / f"t{number}.task.safetensors")
            assert list(expected) == list(found)
            assert all(np.array_equal(expected[name], found[name]) for name in expected), f"t{number}"
