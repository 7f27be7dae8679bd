"""What the benchmarks share: where results go, what machine they are from, and runs that are not done twice."""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

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


class Results:
    """A JSON file of rows by key, written after each row, so that a benchmark can be interrupted and goes on.

    Args:
        name: Name of the benchmark; the file is `results/NAME.json`.
        folder: Where the file is kept.
    """

    def __init__(self, name: str, folder: Path = RESULTS):
        self.path = folder / f"{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.rows: dict[str, Any] = json.loads(self.path.read_text())["rows"] if self.path.exists() else {}

    def run(self, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Returns the row of a key, measured now if it is not in the file; says on stderr which it is."""
        if key in self.rows:
            print(f"{key}: measured before", file=sys.stderr)
        else:
            print(f"{key}: ...", file=sys.stderr, flush=True)
            self.rows[key] = measure()
            self.save()
        return self.rows[key]

    def save(self, **extra: Any) -> None:
        """Writes the rows, the machine and anything else given."""
        content = {"machine": machine(), **extra, "rows": self.rows}
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


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
