"""Several machines: who they are, what they agree on, and what ends them; all of it without TensorFlow."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from piggyback_tf.training import TrainingError, team
from piggyback_tf.training.cluster import Cluster, read_cluster
from piggyback_tf.training.links import WorkerLink
from piggyback_tf.training.team import Team, joined_team
from tests.training.workers import free_ports


@pytest.fixture
def addresses():
    return tuple(f"localhost:{port}" for port in free_ports(3))


def together(addresses, *functions, timeout=20.0):
    """Returns what each worker's function returns of its team, or raises; that of one ends none of the others."""

    def end(sentence, number):
        del sentence, number

    def run(index, function):
        with joined_team(Cluster(addresses[: len(functions)], index), timeout, end) as found:
            return function(found)

    with ThreadPoolExecutor(len(functions)) as pool:
        futures = [pool.submit(run, index, function) for index, function in enumerate(functions)]
    return [future.exception() or future.result() for future in futures]


def config(index=0, kind="worker", **cluster):
    cluster = cluster or {"worker": ["a:1", "b:2"]}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})}


def test_a_cluster_is_read_from_tf_config():
    assert read_cluster(config(1)) == Cluster(("a:1", "b:2"), 1)
    with_chief = {"chief": ["c:3"], "worker": ["a:1", "[::1]:2"]}
    assert read_cluster(config(0, "chief", **with_chief)) == Cluster(("c:3", "a:1", "[::1]:2"), 0)
    found = read_cluster(config("1", **with_chief))
    assert found.index == 2
    assert found.host_and_port(2) == ("::1", 2)
    assert (found.name(0), found.name(2)) == ("the chief (c:3)", "worker 2 ([::1]:2)")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "which is not set. Example: "),
        ({"TF_CONFIG": "{"}, "cannot be read"),
        ({"TF_CONFIG": "[]"}, "cannot be read"),
        (config(2), "says that this is worker 2, of which there is none"),
        (config(-1), "says that this is worker -1"),
        (config(0, "evaluator"), "of the kind 'evaluator'"),
        (config(worker=["a:1", "b:2"], ps=["c:3"]), "machines of the kind 'ps'"),
        (config(worker=["a:1"]), "names one worker only"),
        (config(worker=["a:1", "a:1"]), "names one address twice"),
        (config(worker=["a:1", "b"]), "the address 'b', which must be HOST:PORT"),
        (config(worker=["a:1", "b:99999"]), "the address 'b:99999'"),
        (config(chief=["a:1", "b:2"], worker=["c:3"]), "more than one chief"),
    ],
)
def test_a_wrong_tf_config_is_a_sentence(environment, message):
    with pytest.raises(TrainingError, match="--strategy=multi_worker needs TF_CONFIG") as found:
        read_cluster(environment)
    assert message in str(found.value)


def test_a_process_by_itself_is_a_team_of_one(tmp_path):
    with joined_team(None, 1.0, None) as alone:
        assert alone.is_chief
        assert alone.agree({"a": 1}) == {"a": 1}
        alone.check_same({"a": 1})
        alone.share_file(tmp_path / "not_there")
        assert alone.rows(7) is None


def test_workers_agree_with_the_chief_and_get_its_files(addresses, tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "state").write_bytes(bytes(range(256)) * 20000)

    def work(found):
        own = tmp_path / str(found.index)
        own.mkdir(exist_ok=True)
        value = found.agree({"epochs": 3} if found.is_chief else None)
        found.share_file(own / "state")
        found.check_same({"data": "digits", "seed": 0})
        return value, (own / "state").read_bytes(), found.rows(6)

    content = (tmp_path / "0" / "state").read_bytes()
    expected = [({"epochs": 3}, content, range(start, start + 2)) for start in (0, 2, 4)]
    assert together(addresses, work, work, work) == expected


def test_what_differs_is_refused_on_every_worker_with_both_values(addresses):
    def work(found):
        found.check_same({"seed": found.index % 2, "epochs": 5} | ({"task": "a"} if found.index == 2 else {}), "--")

    errors = together(addresses, work, work, work)
    expected = (
        "All workers must do the same: --seed is 0 at the chief and 1 at worker 1; "
        '--task is not set at the chief and "a" at worker 2.'
    )
    assert [str(error) for error in errors] == [expected] * 3


def test_who_reads_late_what_differs_is_not_ended_before_it(addresses):
    ends = []

    def work(found):
        found._end_process = ends.append
        if found.index:
            agree = found.agree
            found.agree = lambda value=None: (agree(value), time.sleep(0.3))[0]
        found.check_same({"seed": found.index})

    errors = together(addresses, work, work)
    assert all("seed is 0 at the chief and 1 at worker 1" in str(error) for error in errors)
    assert not ends


def test_batches_must_be_shared_evenly(addresses):
    errors = together(addresses, *[lambda found: found.rows(32)] * 3)
    assert "--batch_size must be a multiple of the 3 workers. Received: 32." in str(errors[0])


def test_an_error_of_one_ends_all(addresses):
    ends = {}

    def wait(found):
        """As a main thread that waits for TensorFlow, which only the end of the process ends."""
        ended = threading.Event()
        found._end_process = lambda sentence: (ends.update({found.index: sentence}), ended.set())
        found.leave = lambda *arguments: None
        time.sleep(0.2)
        assert found.index == 1 or ended.wait(10)
        if found.index == 1:
            found.leave = type(found).leave.__get__(found)
            raise TrainingError("The loss became nan.")

    together(addresses, wait, wait, wait)
    assert ends == dict.fromkeys((0, 2), f"Worker 1 ({addresses[1]}) ended: The loss became nan.")


def test_a_worker_whose_connection_breaks_is_named(addresses):
    ends, ended = [], threading.Event()

    def listen(found):
        found._end_process = lambda sentence: (ends.append(sentence), ended.set())
        found.leave = lambda *arguments: None
        assert ended.wait(10)

    def vanish(found):
        time.sleep(0.2)
        found._leaving.set()  # As if the process had been killed: nothing more is said.
        for link in found._links.values():
            link.close()
        found.leave = lambda *arguments: None

    together(addresses, listen, vanish)
    assert len(ends) == 1
    assert ends[0].startswith(f"Worker 1 ({addresses[1]}) is gone")
    assert ends[0].endswith("go on after the last completed epoch.")


def test_a_worker_that_is_stopped_is_named(addresses, monkeypatch):
    monkeypatch.setattr(team, "_SILENCE", 0.6)
    monkeypatch.setattr(team, "_BEAT", 0.1)
    ended = threading.Event()
    first, second = socket.socketpair()
    link = WorkerLink(first, "worker 1 (b:2)")
    found = []

    def end(sentence):
        found.append(sentence)
        ended.set()

    Team(Cluster(("a:1", "b:2"), 0), {1: link}, end)
    assert ended.wait(10)
    assert found[0].startswith("Worker 1 (b:2) has said nothing for 1 seconds.")
    link.close()
    second.close()


def test_who_is_done_says_that_it_is_there_until_the_others_are_done(addresses):
    teams = {}

    def work(found):
        teams[found.index] = found
        time.sleep(0.5 * found.index)
        return teams[0]._leaving.is_set()  # Then it would say nothing any more.

    assert together(addresses, work, work)[1] is False
    assert teams[0]._leaving.is_set()


def test_who_does_not_come_is_named(addresses):
    cluster = Cluster(addresses, 0)
    with pytest.raises(TrainingError, match="did not come within 0 seconds") as found, joined_team(cluster, 0.3, None):
        pass
    assert f"Worker 1 ({addresses[1]}), worker 2 ({addresses[2]}) did not come" in str(found.value)
    with (
        pytest.raises(TrainingError, match="was not reached within 1 seconds") as found,
        joined_team(Cluster(addresses, 1), 1.0, None),
    ):
        pass
    assert f"The chief ({addresses[0]})" in str(found.value)


def test_workers_that_came_are_told_who_did_not(addresses):
    def start(index):
        with joined_team(Cluster(addresses, index), 1.5, None):
            pass

    with ThreadPoolExecutor(2) as pool:
        errors = [future.exception() for future in [pool.submit(start, index) for index in (0, 1)]]
    assert [f"Worker 2 ({addresses[2]}) did not come" in str(error) for error in errors] == [True, True]


def test_workers_of_another_cluster_are_sent_away(addresses):
    def start(cluster):
        with joined_team(cluster, 1.5, None):
            pass

    with ThreadPoolExecutor(2) as pool:
        other = (addresses[0], "elsewhere:1")
        futures = [pool.submit(start, Cluster(addresses[:2], 0)), pool.submit(start, Cluster(other, 1))]
        errors = [str(future.exception()) for future in futures]
    assert "TF_CONFIG must agree" in errors[1]
    assert "did not come" in errors[0]


def test_two_of_one_worker_are_refused(addresses):
    def start(index):
        with joined_team(Cluster(addresses, index), 3.0, None):
            pass

    with ThreadPoolExecutor(3) as pool:
        errors = [str(future.exception()) for future in [pool.submit(start, index) for index in (0, 1, 1)]]
    assert sum(f"There are two of worker 1 ({addresses[1]})" in error for error in errors) == 1
    assert sum("did not come" in error for error in errors) == 2


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(TrainingError, match=f"cannot listen at port {port}"),
            joined_team(Cluster((f"localhost:{port}", "localhost:1"), 0), 1.0, None),
        ):
            pass


def test_the_chiefs_port_is_free_when_all_are_there(addresses):
    """TensorFlow listens there next, while the connections stay."""

    def listen(found):
        if not found.is_chief:
            return found.agree()
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("", int(addresses[0].rpartition(":")[2])))
            server.listen()
        return found.agree("bound")

    assert together(addresses, listen, listen) == ["bound", "bound"]


def test_sigterm_is_heeded_while_the_main_thread_waits():
    heard = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    with team._heeding_sigterm(heard.set):
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before
