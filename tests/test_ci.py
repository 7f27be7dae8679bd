"""Which slow tests CI runs after a change."""

import datetime
import importlib.util
import re
import subprocess
import sys
import time
import tomllib
import warnings
from pathlib import Path

import grimp
import pytest
import yaml
from packaging.requirements import Requirement

from tests.conftest import LONGEST, TOGETHER, unit_of

ROOT = Path(__file__).resolve().parent.parent
# May only fall.
LOOSE_MODULES = 53


def _script(name):
    sys.path.insert(0, str(ROOT / ".ci"))  # One script may import another.
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ci():
    return _script("slow_tests")


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
        (["tests/packs/conftest.py"], {"tests.packs.test_pack", "tests.packs.test_bits"}),
        (["tests/packs/packs.json"], {"tests.packs.test_pack", "tests.packs.test_bits"}),
        (["tests/conftest.py"], {"tests.test_train", "tests.packs.test_pack", "tests.packs.test_bits"}),
        ([".ci/durations.json"], set()),
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
    assert list(ci.seconds_by_file(durations, durations)) == ["a.py", "c.py", "b.py"]


def test_a_test_that_moved_keeps_its_duration(ci):
    known = {"a.py::moved": 10.0, "b.py::moved": 30.0, "b.py::stays": 5.0, "gone.py::gone": 1.0}
    tests = ["a.py::stays", "b.py::stays", "new.py::moved", "new.py::new"]
    assert ci.estimates(tests, known) == dict(zip(tests, [5.0, 5.0, 30.0, ci.UNKNOWN], strict=True))
    known = {"a.py::each[one]": 10.0, "a.py::each[two]": 30.0, "b.py::each[three]": 2.0}
    tests = ["a.py::each[one]", "a.py::each[three]", "a.py::each[four]"]
    assert ci.estimates(tests, known) == dict(zip(tests, [10.0, 2.0, 30.0], strict=True))


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
    chosen, left = ci.plan(list(durations), distance, durations, datetime.date(2026, 1, 1), limit=85)
    assert chosen == ["tests/near.py::b", "tests/far.py::d", "tests/other.py::turn"]
    chosen, _ = ci.plan(list(durations), distance, durations, datetime.date(2026, 1, 1), limit=70)
    assert chosen == ["tests/far.py::d", "tests/other.py::turn"], "no more than the time that there is"


def test_every_test_has_its_turn_once_a_week(ci):
    tests = [f"tests/test_x.py::test_{number}" for number in range(70)]
    days = [datetime.date(2026, 1, 1) + datetime.timedelta(days) for days in range(7)]
    turns = [sum(ci.turn_of(test, day) for day in days) for test in tests]
    assert set(turns) == {1}
    assert all(any(ci.turn_of(test, day) for test in tests) for day in days)


def test_files_that_changed_are_those_since_the_base(ci, capsys):
    assert ci.changed_files("HEAD") == ci._git("diff", "--name-only", "HEAD").splitlines()
    assert ci.changed_modules(ci.changed_files("no-such-commit"), MODULES) == MODULES
    assert "No commit no-such-commit in this checkout" in capsys.readouterr().out


def test_without_a_history_everything_counts_as_changed(ci, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ci, "ROOT", tmp_path)
    assert ci.changed_modules(ci.changed_files(None), MODULES) == MODULES
    assert "No commit older than four hours in this checkout" in capsys.readouterr().out


def _requirements(file):
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("-r "):
            yield from _requirements(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def test_the_lock_fits_the_requirements():
    lock = _script("lock")
    locked = lock.read_lock(lock.LOCK.read_text())
    wrong = [
        f"{requirement}: {locked.get(lock.canonical(requirement.name), 'not locked')}"
        for requirement in _requirements("requirements-dev.txt")
        if not requirement.specifier.contains(locked.get(lock.canonical(requirement.name), "0"))
    ]
    assert not wrong, f"{wrong}; write the lock anew with .ci/lock.py"


def test_what_is_installed_otherwise_than_locked_is_told():
    lock = _script("lock")
    locked = lock.read_lock("# Comment\nKeras_Hub==1.2\nnumpy==2.0\ngone==1\n")
    there = {"keras-hub": "1.2", "numpy": "2.1", "new": "3", "pip": "23"}
    assert lock.differences(locked, there) == [
        "gone is locked to 1, and installed is nothing.",
        "new is locked to nothing, and installed is 3.",
        "numpy is locked to 2.0, and installed is 2.1.",
    ]
    assert lock.differences(locked, locked) == []


def test_modules_in_which_none_is_not_looked_at_are_there_and_no_more_than_there_were():
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["overrides"]
    (loose,) = (one["module"] for one in overrides if one.get("strict_optional") is False)
    gone = [name for name in loose if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    assert not gone and loose == sorted(set(loose))
    assert len(loose) <= LOOSE_MODULES, "None stands for something in a new module: say so in its types"
    rest = [one for one in overrides if one["module"] != loose]
    assert not [name for one in rest for name in one["module"] if name.startswith(("piggyback_tf", "export"))][1:]
    assert not {"ignore_errors", "disable_error_code"} & {key for one in overrides for key in one}


@pytest.mark.parametrize("kind", [UserWarning, DeprecationWarning, ResourceWarning, RuntimeWarning, FutureWarning])
def test_a_warning_is_an_error(kind):
    with pytest.raises(kind, match="of ours"):
        warnings.warn("of ours", kind, stacklevel=1)


def test_hooks_run_what_ci_runs():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local" and {hook["language"] for hook in repository["hooks"]} == {"system"}
    run = (ROOT / ".ci" / "run").read_text()
    assert all(hook["name"] in run for hook in repository["hooks"])


def _budget(parts, tmp_path):
    (tmp_path / "parts").write_text(parts)
    command = [sys.executable, ROOT / ".ci" / "budget.py", tmp_path / "parts"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_parts_of_ci_have_budgets(tmp_path):
    status, out = _budget("install|100|180|\ntests|720|720|1080\n", tmp_path)
    assert status == 0 and not re.search("WARNING|FAILED|over", out)
    assert re.search(r"^tests +720 +720$", out, re.M) and re.search(r"^all of CI +820 +3600$", out, re.M)
    status, out = _budget("install|181|180|\ntests|1080|720|1080\n", tmp_path)
    assert status == 0 and out.count("WARNING") == 2, "too slow for a quiet machine"
    status, out = _budget("tests|1081|720|1080\n", tmp_path)
    assert status == 1 and "FAILED: tests took 1081 s, and may never take more than 1080 s." in out
    status, out = _budget("tests|700|720|1080\nslow tests|2901|2900|\n", tmp_path)
    assert status == 1 and "FAILED: all of CI took 3601 s" in out


@pytest.mark.parametrize(("command", "status"), [("true", 0), ("false", 1)])
def test_parts_are_timed_and_told_of_a_failure_too(command, status):
    script = f"set -euo pipefail; source .ci/parts.sh; echo $scratch; part one 5; sleep 1; part two 5 9; {command}"
    done = subprocess.run(["bash", "-c", f"{script}; end_parts; echo passed"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert re.search(r"^one +[12] +5$", done.stdout, re.M) and re.search(r"^two +[01] +5$", done.stdout, re.M)
    assert ("CI failed in the part: two" in done.stdout) == bool(status) != ("passed" in done.stdout)
    assert not Path(done.stdout.split()[0]).exists()


def test_what_shares_fixtures_goes_to_one_process_and_all_else_by_file():
    assert unit_of("tests/export/edge/test_cpp.py::test_a[b::c]") == unit_of("tests/export/lite/x/test_d.py::e")
    assert unit_of("tests/export/serving/test_tls.py::f") == unit_of("tests/export/test_saved_model.py::g") == "servers"
    assert unit_of("tests/packs/test_pack.py::TestIt::test_h") == "tests/packs/test_pack.py"
    assert all((ROOT / folder).is_dir() for folder in TOGETHER)
    names = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(LONGEST) <= names, "files that moved"


@pytest.fixture(name="small_ci")
def _small_ci(ci, tmp_path, monkeypatch):
    """The script on a folder with three slow tests, one of which is left, in two files."""
    (tmp_path / ".ci").mkdir()
    for name in ("slow_tests.py", "watch.py"):
        (tmp_path / ".ci" / name).symlink_to(ROOT / ".ci" / name)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import subprocess, sys, time, pytest\n"
        "BUSY = 'import time\\nwhile time.process_time() < 0.5: pass\\nprint(flush=True)\\nopen(0).read()'\n"
        "@pytest.mark.slow\n@pytest.mark.parametrize('text', ['a b', 'c'])\n"
        "def test_slow(text):\n"
        "    pytest.child = subprocess.Popen([sys.executable, '-c', BUSY], stdin=-1, stdout=-1)\n"
        "    pytest.child.stdout.readline()\n    time.sleep(2)\n"
        "def test_fast():\n    assert False\n"
    )
    (tmp_path / "tests" / "test_other.py").write_text(
        "import pytest\n@pytest.mark.slow\ndef test_fails():\n    assert False\n"
    )
    monkeypatch.setattr(ci, "ROOT", tmp_path)
    monkeypatch.setattr(ci, "DURATIONS", tmp_path / "durations.json")
    return ci


NAMES = ["tests/test_it.py::test_slow[a b]", "tests/test_it.py::test_slow[c]", "tests/test_other.py::test_fails"]


@pytest.mark.slow
def test_slow_tests_run_and_the_processors_time_is_kept(small_ci, capfd):
    assert small_ci.collect() == NAMES
    assert small_ci.run(NAMES, dict.fromkeys(NAMES, 1.0), record=True, deadline=float("inf")) == 1
    assert "test_fails" in capfd.readouterr().out
    known = small_ci.read_durations()
    assert list(known) == NAMES[:2], "how long it takes to fail says nothing"
    assert all(0.5 <= seconds < 2 for seconds in known.values()), "a process that goes on counts, and sleep does not"


@pytest.mark.slow
def test_after_the_deadline_nothing_is_begun(small_ci, capfd):
    assert small_ci.run(NAMES, dict.fromkeys(NAMES, 1.0), record=True, deadline=time.time()) == 0
    assert small_ci.read_durations() == {}
    lines = capfd.readouterr().out.splitlines()
    left = sorted(line for line in lines if line.startswith("left out"))
    assert left == [f"left out: {name} (no time left)" for name in NAMES]


@pytest.mark.slow
def test_what_waits_for_ever_is_named_and_ended(small_ci, tmp_path, monkeypatch, capfd):
    waits = "import pytest, time\n@pytest.mark.slow\ndef test_waits():\n    time.sleep(900)\n"
    (tmp_path / "tests" / "test_waits.py").write_text(waits)
    name = "tests/test_waits.py::test_waits"
    monkeypatch.setattr(small_ci, "GRACE", 0)
    started = time.time()
    assert small_ci.run([name], {name: 1.0}, record=False, deadline=started + 15) == 1
    assert 15 <= time.time() - started < 60
    out, errors = capfd.readouterr()
    assert f"Still running: {name}\n" in out and "in test_waits" in errors, "and where it is"


@pytest.mark.slow
def test_a_process_that_died_is_named(small_ci, tmp_path, capfd):
    dies = "import os, pytest\n@pytest.mark.slow\ndef test_dies():\n    os._exit(9)\n"
    (tmp_path / "tests" / "test_dies.py").write_text(dies)
    name = "tests/test_dies.py::test_dies"
    assert small_ci.run([name], {name: 1.0}, record=False, deadline=float("inf")) == 1
    assert f"A process died in {name}." in capfd.readouterr().out


def test_the_real_graph_knows_who_imports_the_packs(ci):
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*ci.PACKAGES)
    importers = {module: graph.find_modules_that_directly_import(module) for module in graph.modules}
    reached = ci.distances(ci.changed_modules(["piggyback_tf/packs/pack.py"], graph.modules), importers)
    assert "tests.methods.test_contract" in reached
    assert "tests.masking.test_networks" not in reached
