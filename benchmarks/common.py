"""What the benchmarks share: where results go, what machine they are from, and runs that are not done twice."""

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from piggyback_tf.evaluation.text import markdown_table
from piggyback_tf.files import write_atomically

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("tensorflow", "keras", "numpy")


def machine() -> dict[str, Any]:
    """Returns what a number has to be read with: processor, cores, memory, versions, date."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


class Claimed(Exception):
    """Another process measures this row now."""


class Results:
    """A JSON file of rows by key, written after each row, so that a benchmark can be interrupted and goes on.

    Several processes of one machine may fill it together: a row that one of them measures is claimed by a lock, which
    the system drops with the process that holds it.

    Args:
        name: Name of the benchmark; the file is `results/NAME.json`.
        folder: Where the file is kept.
    """

    def __init__(self, name: str, folder: Path = RESULTS):
        self.path = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Any] = {}
        self._read()

    def run(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the row of a key, measured now if it is not in the file; says on stderr which it is.

        Raises:
            Claimed: If another process measures it now.
        """
        with self._locked(key, wait=False):
            self._read()
            if key in self.rows:
                print(f"{key}: measured before", file=sys.stderr)
            else:
                print(f"{key}: ...", file=sys.stderr, flush=True)
                self.rows[key] = measure()
                self.save()
        return self.rows[key]

    def save(self, **extra: Any) -> None:
        """Writes the rows, those of other processes included, the machine and anything else given."""
        with self._locked("", wait=True):
            self._read()
            content = {"machine": machine(), **extra, "rows": self.rows}
            # Lists of numbers are a line each: confusion matrices would fill thousands.
            lines = re.sub(r'\[[^][{}"]*\]', lambda found: " ".join(found[0].split()), json.dumps(content, indent=1))
            write_atomically(self.path, lines + "\n")

    def _read(self) -> None:
        """Adds the rows of the file; those of this process stay."""
        if self.path.exists():
            self.rows = json.loads(self.path.read_text())["rows"] | self.rows

    @contextlib.contextmanager
    def _locked(self, key: str, *, wait: bool) -> Iterator[None]:
        """Holds the lock of a key, or of the file itself if the key is empty."""
        name = urllib.parse.quote(f"{self.path.resolve()}:{key}", safe="")
        folder = Path(tempfile.gettempdir()) / "piggyback_benchmarks" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name[-200:]).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                raise Claimed(key) from None
            yield


_Run = TypeVar("_Run")


def measure_all(
    runs: Sequence[_Run], measure: Callable[[_Run], dict[str, Any]], jobs: int = 1
) -> dict[_Run, dict[str, Any]]:
    """Returns the rows of all runs, several of which this script may measure at once.

    Small networks leave the second core idle: two trainings of MobileNetV2 at 96 px with a thread each do 1.5 times as
    many steps as one after the other with two threads.

    Args:
        runs: What to measure, in this order.
        measure: Returns the row of a run through `Results.run`.
        jobs: How many processes measure. Each is this script again with `--jobs=1` and one thread.
    """
    if jobs > 1:
        environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
        command = [sys.executable, *sys.argv, "--jobs=1"]
        workers = [subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) for _ in range(jobs)]
        try:
            for worker in workers:
                worker.wait()
        finally:
            for worker in workers:
                worker.kill()
    rows: dict[_Run, dict[str, Any]] = {}
    while len(rows) < len(runs):
        for run in runs:
            if run not in rows:
                with contextlib.suppress(Claimed):
                    rows[run] = measure(run)
        if len(rows) < len(runs):
            time.sleep(5)
    return rows


def mean_and_spread(values: Sequence[float]) -> str:
    """Returns `"7.31 ± 0.42"`: mean and standard deviation of a sample."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns a Markdown table."""
    return "\n".join(markdown_table(header, [[str(cell) for cell in row] for row in rows]))


def judge(checks: Sequence[dict[str, Any]]) -> None:
    """Prints what was measured beside its limit, and ends the program with an error if something is above it.

    Args:
        checks: Each with `"what"`, `"value"`, `"unit"` and `"limit"`, None if there is none.
    """
    cells = [
        [c["what"], *("-" if c[key] is None else f"{c[key]:.4g} {c['unit']}".strip() for key in ("value", "limit"))]
        for c in checks
    ]
    print(markdown(["", "measured", "limit"], cells))
    if failed := [c["what"] for c in checks if c["limit"] is not None and not c["value"] <= c["limit"]]:
        sys.exit(f"Above the limit: {'; '.join(failed)}.")


def in_new_process(script: str, *arguments: str) -> Any:
    """Returns what a script prints in its last line, JSON, if it is run with these arguments."""
    run = subprocess.run([sys.executable, script, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


def peak_mib() -> float:
    """Returns the largest memory that this program has taken so far, in MiB.

    Not `ru_maxrss`: a process starts with that of the one that started it.
    """
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def realdata() -> Path:
    """Returns the folder of real images and weights, or ends the program with a sentence."""
    path = os.environ.get("PIGGYBACK_REALDATA")
    if not path or not Path(path).is_dir():
        sys.exit(
            "This benchmark needs the environment variable PIGGYBACK_REALDATA: a folder with the image folders "
            "pacs_sketch, pacs_art_painting and dtd10 and weights/mobilenet_v2_imagenet_notop.weights.h5."
        )
    return Path(path)


def parser(description: str) -> argparse.ArgumentParser:
    """Returns an argument parser with the script's own docstring as help."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
