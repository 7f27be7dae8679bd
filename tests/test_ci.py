"""Which slow tests CI runs after a change."""

import datetime
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def ci():
    spec = importlib.util.spec_from_file_location("slow_tests", ROOT / ".ci" / "slow_tests.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {
    "piggyback_tf",
    "piggyback_tf.packs",
    "piggyback_tf.packs.pack",
    "piggyback_tf.packs.bits",
    "piggyback_tf.methods",
    "piggyback_tf.methods.hat",
    "export",
    "export.edge",
    "export.edge.build",
    "tests.test_train",
    "tests.packs.test_pack",
    "tests.packs.test_bits",
}


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        (["piggyback_tf/packs/pack.py"], {"piggyback_tf.packs", "piggyback_tf.packs.pack", "piggyback_tf.packs.bits"}),
        (["export/edge/cpp/piggyback_edge.cc"], {"export.edge", "export.edge.build"}),
        (["tests/packs/test_pack.py", "README.md"], {"tests.packs.test_pack"}),
        (["train.py"], {"tests.test_train"}),
        (["docs/results.md", "configs/flowers.flags"], set()),
        (["requirements-dev.txt"], MODULES),
    ],
)
def test_a_change_counts_for_its_folder(ci, files, changed):
    assert ci.changed_modules(files, MODULES) == changed


def test_importers_are_followed_and_counted(ci):
    importers = {"a": {"b"}, "b": {"c", "tests.test_b"}, "c": {"a"}, "x": {"tests.test_x"}}
    assert ci.distances({"a"}, importers) == {"a": 0, "b": 1, "c": 2, "tests.test_b": 2}


def test_two_processes_take_files_whole(ci):
    durations = {"a.py::1": 10.0, "a.py::2": 30.0, "b.py::1": 20.0, "c.py::1": 30.0}
    assert ci.seconds_needed(durations, durations) == 45.0
    assert ci.seconds_needed(["a.py::1", "a.py::2", "b.py::1"], durations) == 40.0
    assert ci.seconds_needed(["a.py::new"], durations) == ci.UNKNOWN


def test_near_tests_go_first_until_the_time_is_full(ci, monkeypatch):
    monkeypatch.setattr(ci, "CHANGED_LIMIT", 100)
    monkeypatch.setattr(ci, "TURN_LIMIT", 50)
    monkeypatch.setattr(ci, "turn_of", lambda test, day: "turn" in test)
    durations = {"tests/far.py::a": 90.0, "tests/near.py::b": 80.0, "tests/near.py::c": 200.0, "tests/far.py::d": 20.0}
    durations |= {"tests/other.py::turn": 30.0, "tests/other.py::not": 1.0, "tests/late.py::turn": 400.0}
    distance = {"tests.far": 3, "tests.near": 1}
    chosen, left = ci.plan(list(durations), distance, durations, datetime.date(2026, 1, 1))
    assert chosen == ["tests/near.py::b", "tests/far.py::d", "tests/other.py::turn"]
    assert left == ["tests/far.py::a", "tests/late.py::turn", "tests/near.py::c"], "what did not fit is said"


def test_every_test_has_its_turn_once_a_week(ci):
    tests = [f"tests/test_x.py::test_{number}" for number in range(70)]
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(days) for days in range(7)]
    turns = [sum(ci.turn_of(test, day) for day in days) for test in tests]
    assert set(turns) == {1}
    assert all(any(ci.turn_of(test, day) for test in tests) for day in days)


def test_files_that_changed_are_those_since_the_base(ci, capsys):
    assert ci.changed_files("HEAD") == ci._git("diff", "--name-only", "HEAD").splitlines()
    assert "README.md" in ci.changed_files("no-such-commit")
    assert "No commit no-such-commit in this checkout" in capsys.readouterr().out


@pytest.mark.slow
def test_slow_tests_run_and_their_times_are_kept(ci, tmp_path, monkeypatch):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "slow_tests.py").symlink_to(ROOT / ".ci" / "slow_tests.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import time, pytest\n"
        "@pytest.mark.slow\n@pytest.mark.parametrize('text', ['a b', 'c'])\n"
        "def test_slow(text):\n    time.sleep(0.2)\n"
        "def test_fast():\n    assert False\n"
    )
    monkeypatch.setattr(ci, "ROOT", tmp_path)
    monkeypatch.setattr(ci, "DURATIONS", tmp_path / "durations.json")
    names = [f"tests/test_it.py::test_slow[{text}]" for text in ("a b", "c")]
    assert ci.collect() == names
    assert ci.run(names, record=True, deadline=float("inf")) == 0
    known = json.loads((tmp_path / "durations.json").read_text())
    assert list(known) == names
    assert all(0.1 < seconds < 5 for seconds in known.values())
    # After the deadline nothing is begun, and no time is kept.
    assert ci.run(names[:1], record=True, deadline=0.0) == 0
    assert json.loads((tmp_path / "durations.json").read_text()) == known


def test_the_real_graph_knows_who_imports_the_packs(ci):
    grimp = pytest.importorskip("grimp")
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*ci.PACKAGES)
    importers = {module: graph.find_modules_that_directly_import(module) for module in graph.modules}
    reached = ci.distances(ci.changed_modules(["piggyback_tf/packs/pack.py"], graph.modules), importers)
    assert "tests.methods.test_contract" in reached
    assert "tests.masking.test_networks" not in reached
