"""Runs the slow tests that a change may have broken, and each day a seventh of the others.

    python .ci/slow_tests.py           # since $CI_BASE, or else since the newest commit older than four hours
    python .ci/slow_tests.py --list    # only says which
    python .ci/slow_tests.py --all --record    # all of them, and writes how long each took to durations.json

A test may be broken if its file imports, directly or through others, a module in a folder in which something changed.
Those fewest imports away run first, up to 30 minutes by the committed durations. Of the others those run whose turn it
is today, up to 8 minutes. What was left out is printed.
"""

import argparse
import collections
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
DURATIONS = ROOT / ".ci" / "durations.json"
PACKAGES = ("piggyback_tf", "export", "tests")
PROCESSES = 2
# Seconds: for what the change may have broken, for the others, and after which nothing is begun.
CHANGED_LIMIT, TURN_LIMIT, LATEST = 30 * 60, 8 * 60, 42 * 60
# Of a test that was never timed.
UNKNOWN = 60.0
# With these all may be broken.
EVERYTHING = ("requirements", "pyproject.toml", ".ci/")
_DEADLINE = "PIGGYBACK_SLOW_TESTS_DEADLINE"


def changed_files(base: str | None) -> list[str]:
    """Returns the files that differ between a commit and the checkout, relative to its root.

    Args:
        base: The commit; None for the newest that is older than four hours.
    """
    base = base or _git("log", "-1", "--format=%H", "--before=4 hours ago")
    if not base or not _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", check=False):
        print(f"No commit {base or 'older than four hours'} in this checkout: everything counts as changed.")
        return _git("ls-files").splitlines()
    return _git("diff", "--name-only", base).splitlines()


def _git(*arguments: str, check: bool = True) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=check, capture_output=True, text=True).stdout.strip()


def changed_modules(files: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Returns the modules in whose folders something changed.

    Tests count by file: they do not import one another, except for what they share.
    """
    modules = set(modules)
    if any(file.startswith(EVERYTHING) for file in files):
        return modules
    changed = set()
    for file in map(PurePosixPath, files):
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        if file.parts[0] == "tests":
            changed |= {name} & modules
        elif file.parts[0] in PACKAGES:
            # A folder without modules, of C++ sources, belongs to the one above.
            folder = next(".".join(p.parts) for p in file.parents if ".".join(p.parts) in modules)
            changed |= {m for m in modules if m == folder or m.rpartition(".")[0] == folder}
        elif len(file.parts) == 1 and file.suffix == ".py":  # train.py, which no test imports.
            changed |= {"tests.test_train"} & modules
    return changed


def distances(changed: Iterable[str], importers: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Returns by how many imports a module is apart from the nearest changed one, for all that reach one."""
    found = dict.fromkeys(changed, 0)
    queue = collections.deque(found)
    while queue:
        module = queue.popleft()
        for importer in importers.get(module, ()):
            if importer not in found:
                found[importer] = found[module] + 1
                queue.append(importer)
    return found


def seconds_needed(tests: Iterable[str], durations: Mapping[str, float]) -> float:
    """Returns how long tests take in two processes, each with whole files."""
    by_file: collections.Counter[str] = collections.Counter()
    for test in tests:
        by_file[test.partition("::")[0]] += durations.get(test, UNKNOWN)
    return max(sum(by_file.values()) / PROCESSES, max(by_file.values(), default=0.0))


def choose(
    tests: Iterable[str], durations: Mapping[str, float], limit: float, before: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Returns the tests that fit into a time, the first ones first, and those that do not.

    Args:
        tests: Names of tests, the most important first.
        durations: Seconds by name.
        limit: Seconds that all may take.
        before: Tests that run in any case.
    """
    chosen, left = list(before), []
    for test in tests:
        (chosen if seconds_needed([*chosen, test], durations) <= limit else left).append(test)
    return chosen, left


def turn_of(test: str, day: datetime.date) -> bool:
    """Whether it is a test's turn on a day: every test has one in seven days."""
    return zlib.crc32(test.encode()) % 7 == day.toordinal() % 7


def plan(
    tests: list[str], distance: Mapping[str, int], durations: Mapping[str, float], day: datetime.date
) -> tuple[list[str], list[str]]:
    """Returns which tests run, and which are left out though the change may have broken them or it is their turn."""

    def steps(test: str) -> int | None:
        return distance.get(test.partition("::")[0].removesuffix(".py").replace("/", "."))

    affected = [test for test in tests if steps(test) is not None]
    affected.sort(key=lambda test: (steps(test), durations.get(test, UNKNOWN)))
    chosen, left = choose(affected, durations, CHANGED_LIMIT)
    turn = [test for test in tests if test not in set(chosen) and turn_of(test, day)]
    chosen, late = choose(turn, durations, seconds_needed(chosen, durations) + TURN_LIMIT, chosen)
    return chosen, sorted({*left, *late} - set(chosen))


def collect() -> list[str]:
    """Returns the names of all slow tests."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", "-m", "slow"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        sys.exit(out.stdout + out.stderr)
    return [line for line in out.stdout.splitlines() if "::" in line]


def run(tests: list[str], record: bool, deadline: float) -> int:
    """Runs tests, and keeps how long each took if that is asked for. Returns pytest's status."""
    with tempfile.TemporaryDirectory() as folder:
        report, names = Path(folder) / "report.xml", Path(folder) / "tests"
        names.write_text("\n".join(tests))
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-m", "slow", "-p", "slow_tests"]
        command += ["-n", str(PROCESSES), "--dist=loadfile", "--durations=20", f"--junitxml={report}", f"@{names}"]
        environment = os.environ | {_DEADLINE: str(deadline), "PYTHONPATH": str(ROOT / ".ci")}
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if record:
            known = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
            known |= _durations(report)
            DURATIONS.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")
    return status


def _durations(report: Path) -> dict[str, float]:
    """Returns the seconds of each test of a JUnit report that ran."""
    cases = xml.etree.ElementTree.parse(report).iter("testcase")
    names = {case: f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}" for case in cases}
    return {name: round(float(case.get("time", 0)), 1) for case, name in names.items() if case.find("skipped") is None}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """In the tests' processes: begins nothing after the deadline."""
    if time.time() > float(os.environ[_DEADLINE]):
        pytest.skip("no time left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only say which tests would run")
    parser.add_argument("--all", action="store_true", help="run all, however long it takes")
    parser.add_argument("--record", action="store_true", help="write how long they took to .ci/durations.json")
    options = parser.parse_args()
    durations = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    tests = collect()
    chosen, left = tests, []
    if not options.all:
        # Slow to import, and not needed in the tests' processes.
        import grimp

        sys.path.insert(0, str(ROOT))
        graph = grimp.build_graph(*PACKAGES)
        changed = changed_modules(changed_files(os.environ.get("CI_BASE")), graph.modules)
        importers = {module: graph.find_modules_that_directly_import(module) for module in graph.modules}
        chosen, left = plan(tests, distances(changed, importers), durations, datetime.datetime.now(datetime.UTC).date())
    expected = seconds_needed(chosen, durations) / 60
    print(f"{len(chosen)} of {len(tests)} slow tests run, about {expected:.0f} minutes.")
    for test in left:
        print(f"left out: {test} ({durations.get(test, UNKNOWN):.0f} s)")
    if options.list:
        print(*chosen, sep="\n")
    elif chosen:
        sys.exit(run(chosen, options.record, float("inf") if options.all else time.time() + LATEST))


if __name__ == "__main__":
    main()
