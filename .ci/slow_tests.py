"""Runs the slow tests that a change may have broken, and each day a seventh of the others.

    python .ci/slow_tests.py           # since $CI_BASE, or else since the newest commit older than four hours
    python .ci/slow_tests.py --list    # only says which
    python .ci/slow_tests.py --all --record    # all of them, and writes how long each takes to durations.json
    python .ci/slow_tests.py --new --record    # those that are not in there yet: goes on with the above, too

A test may be broken if its file imports, directly or through others, a module in a folder in which something changed.
Those fewest imports away run first, up to 30 minutes by the committed durations. Of the others those run whose turn it
is today, up to 8 minutes. What was left out is printed.

Durations are seconds of a processor, of the test and the processes that it starts, and so the same on a busy machine.
One that moved to another file keeps its duration. One with new parameters counts as the longest with others, and any
other new one as a minute.

After `--seconds` nothing is begun any more. Five minutes later all that still runs is ended, and named.
"""

import argparse
import collections
import contextlib
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import watch
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parent.parent
DURATIONS = ROOT / ".ci" / "durations.json"
PACKAGES = ("piggyback_tf", "export", "tests")
PROCESSES = 2
# Seconds for what the change may have broken, and for the others.
CHANGED_LIMIT, TURN_LIMIT = 30 * 60, 8 * 60
# Of a test that was never timed.
UNKNOWN = 60.0
# With these all may be broken.
EVERYTHING = ("requirements", "pyproject.toml", ".ci/slow_tests.py")
# Seconds after the last test may begin, in which it has to end.
GRACE = 5 * 60
# What the processes of the tests are told: when nothing is begun any more, the file for durations, or nothing, and the
# folder in which each says what it is at.
_DEADLINE, _RECORD = "PIGGYBACK_SLOW_TESTS_DEADLINE", "PIGGYBACK_SLOW_TESTS_RECORD"
_RUNNING = "PIGGYBACK_SLOW_TESTS_RUNNING"
_NO_TIME, _SECONDS = "no time left", "processor_seconds"
_STARTED = pytest.StashKey[float]()


def changed_files(base: str | None) -> list[str]:
    """Returns the files that differ between a commit and the checkout, relative to its root.

    Args:
        base: The commit; None for the newest that is older than four hours.
    """
    base = base or _git("log", "-1", "--format=%H", "--before=4 hours ago")
    if not base or not _git("rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"):
        print(f"No commit {base or 'older than four hours'} in this checkout: everything counts as changed.")
        return list(EVERYTHING)
    return _git("diff", "--name-only", base).splitlines()


def _git(*arguments: str) -> str:
    """Returns what git prints, and nothing if it finds nothing."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def changed_modules(files: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Returns the modules in whose folders something changed.

    Tests count by file: they do not import one another, except for what they share. What is no module there, and a
    conftest.py, counts for all tests of its folder and of those in it.
    """
    modules = set(modules)
    if any(file.startswith(EVERYTHING) for file in files):
        return modules
    changed = set()
    for file in map(PurePosixPath, files):
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        if file.parts[0] == "tests":
            shared = file.suffix != ".py" or file.name == "conftest.py"
            below = ".".join(file.parent.parts) + "."
            changed |= {m for m in modules if m == name or shared and m.startswith(below)}
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


def estimates(tests: Iterable[str], known: Mapping[str, float]) -> dict[str, float]:
    """Returns how long each test takes: as it took, or the longest that is known of the next best.

    That is one of its name in another file, then the same test with other parameters, and else `UNKNOWN`.
    """
    longest: dict[str, float] = {}
    for test, seconds in known.items():
        for name in _names(test):
            longest[name] = max(seconds, longest.get(name, 0.0))
    return {test: next((longest[name] for name in _names(test) if name in longest), UNKNOWN) for test in tests}


def _names(test: str) -> list[str]:
    """Returns by which names a test may be known, the surest first: all, without its file, without parameters."""
    name = test.partition("::")[2]
    return [test, name, name.partition("[")[0]]


def seconds_by_file(tests: Iterable[str], durations: Mapping[str, float]) -> dict[str, float]:
    """Returns how long the tests of each file take, the longest first."""
    by_file: collections.Counter[str] = collections.Counter()
    for test in tests:
        by_file[test.partition("::")[0]] += durations[test]
    return dict(by_file.most_common())


def seconds_needed(tests: Iterable[str], durations: Mapping[str, float]) -> float:
    """Returns how long tests take in two processes, each with whole files."""
    by_file = seconds_by_file(tests, durations).values()
    return max(sum(by_file) / PROCESSES, max(by_file, default=0.0))


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
    tests: list[str],
    distance: Mapping[str, int],
    durations: Mapping[str, float],
    day: datetime.date,
    limit: float = float("inf"),
) -> tuple[list[str], list[str]]:
    """Returns which tests run, and which are left out though the change may have broken them or it is their turn.

    Args:
        tests: Names of all slow tests.
        distance: By how many imports modules are apart from what changed.
        durations: Seconds of each test.
        day: Today.
        limit: Seconds that there are in all.
    """

    def steps(test: str) -> int | None:
        return distance.get(test.partition("::")[0].removesuffix(".py").replace("/", "."))

    affected = [test for test in tests if steps(test) is not None]
    affected.sort(key=lambda test: (steps(test), durations[test]))
    chosen, left = choose(affected, durations, min(CHANGED_LIMIT, limit))
    turn = [test for test in tests if test not in set(chosen) and turn_of(test, day)]
    both = min(seconds_needed(chosen, durations) + TURN_LIMIT, limit)
    chosen, late = choose(turn, durations, both, chosen)
    return chosen, sorted({*left, *late} - set(chosen))


def collect() -> list[str]:
    """Returns the names of all slow tests."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--collect-only", "-q", "-m", "slow"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tests = [line for line in out.stdout.splitlines() if "::" in line]
    if out.returncode or not tests:
        sys.exit(f"{out.stdout}{out.stderr}\npytest lists no slow tests.")
    return tests


def run(tests: Iterable[str], durations: Mapping[str, float], record: bool, deadline: float) -> int:
    """Runs tests, those in the longest files first, so that no process is left alone with them at the end.

    Args:
        tests: Names of tests.
        durations: Seconds of each of them.
        record: Whether to keep how long each takes, from one to the next, so that nothing is lost if this is stopped.
        deadline: When nothing is begun any more, in seconds since 1970. After `GRACE` all is ended.

    Returns:
        pytest's status.
    """
    places = {file: place for place, file in enumerate(seconds_by_file(tests, durations))}
    with tempfile.TemporaryDirectory() as folder:
        names, running = Path(folder) / "tests", Path(folder) / "running"
        running.mkdir()
        names.write_text("\n".join(sorted(tests, key=lambda test: places[test.partition("::")[0]])))
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-m", "slow", "-p", "slow_tests"]
        command += ["-n", str(PROCESSES), "--dist=loadfile", "--no-loadscope-reorder", "--durations=20", f"@{names}"]
        environment = os.environ | {_DEADLINE: str(deadline), _RECORD: str(DURATIONS) if record else ""}
        environment[_RUNNING] = str(running)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / ".ci"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return watch.run(command, ROOT, environment, running, deadline + GRACE)


def read_durations() -> dict[str, float]:
    """Returns the seconds that tests took, by name."""
    return json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}


def write_durations(known: Mapping[str, float]) -> None:
    DURATIONS.write_text(json.dumps(dict(sorted(known.items())), indent=0) + "\n")


# From here on hooks of pytest: this file is a plugin of it, too.


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the order of the command line, which is not that of the other tests."""
    places = {name: place for place, name in enumerate(config.args)}
    items.sort(key=lambda item: places[item.nodeid])


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process whole files, as `seconds_needed` reckons. The other tests have units of their own."""
    return LoadFileScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begins nothing after the deadline."""
    if time.time() > float(os.environ[_DEADLINE]):
        pytest.skip(_NO_TIME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[_STARTED] = _processor_seconds()
    with watch.at(item.nodeid, Path(os.environ[_RUNNING])):
        return (yield)


def pytest_handlecrashitem(crashitem: str) -> None:
    """Says at once in which test a process died. pytest says it in its summary, which may never come."""
    print(f"\nA process died in {crashitem}.", flush=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    if report.when == "teardown":
        report.user_properties.append((_SECONDS, _processor_seconds() - item.stash[_STARTED]))
    return report


def _processor_seconds() -> float:
    """Returns what this process has taken so far, with all that it started, whether they have ended or not.

    Where there is no /proc those that go on, such as servers, are not counted.
    """
    own, children = os.getpid(), collections.defaultdict(list)
    seconds = {own: sum(os.times()[:4])}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            # After the name, which may hold spaces: state, parent, and further on the times of it and its children.
            fields = path.read_text().rpartition(")")[2].split()
            children[int(fields[1])].append(process := int(path.parent.name))
            seconds.setdefault(process, sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK"))
    found = [own]
    for process in found:
        found += children[process]
    return sum(seconds[process] for process in found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("skipped", ()):
        if _NO_TIME in str(report.longrepr):
            terminalreporter.write_line(f"left out: {report.nodeid} ({_NO_TIME})")


class _Recorder:
    """Writes the durations of tests that passed, in the process to which all others report."""

    def __init__(self):
        self._passed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        elif report.when == "teardown" and report.passed and report.nodeid in self._passed:
            seconds = round(dict(report.user_properties)[_SECONDS], 1)
            write_durations(read_durations() | {report.nodeid: seconds})


def pytest_configure(config: pytest.Config) -> None:
    if os.environ[_RECORD] and not hasattr(config, "workerinput"):
        global DURATIONS
        DURATIONS = Path(os.environ[_RECORD])
        config.pluginmanager.register(_Recorder())


# And from here on the command again.


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="only say which tests would run")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="run all, however long it takes")
    which.add_argument("--new", action="store_true", help="run those whose duration is not known")
    parser.add_argument("--record", action="store_true", help="write how long they take to .ci/durations.json")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after them nothing is begun any more")
    options = parser.parse_args()
    started, known, tests = time.time(), read_durations(), collect()
    durations = estimates(tests, known)
    if options.record:  # Of tests that are no more nothing is kept.
        write_durations({test: known[test] for test in tests if test in known})
    chosen, left = tests, []
    if options.new:
        chosen = [test for test in tests if test not in known]
    elif not options.all:
        # Slow to import, and not needed in the tests' processes.
        import grimp

        sys.path.insert(0, str(ROOT))
        graph = grimp.build_graph(*PACKAGES)
        changed = changed_modules(changed_files(os.environ.get("CI_BASE")), graph.modules)
        importers = {module: graph.find_modules_that_directly_import(module) for module in graph.modules}
        today = datetime.datetime.now(datetime.UTC).date()
        chosen, left = plan(tests, distances(changed, importers), durations, today, options.seconds)
    expected = seconds_needed(chosen, durations) / 60
    print(f"{len(chosen)} of {len(tests)} slow tests run, about {expected:.0f} minutes.")
    for test in left:
        print(f"left out: {test} ({durations[test]:.0f} s)", flush=True)
    if options.list:
        print(*chosen, sep="\n")
    elif chosen:
        sys.exit(run(chosen, durations, options.record, started + options.seconds))


if __name__ == "__main__":
    main()
