"""A base made of nothing but numbers, tasks for it, real exports, and the C++ patcher."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from export.edge.piggyback_edge import DIGEST, DTYPES, TERNARY, Base, Entry, Manifest, Task
from export.lite.patch.task_file import task_bytes

# The fixture `patched`.
from tests.export.lite.conftest import _patched  # noqa: F401

SOURCE = Path(__file__).parents[3] / "export" / "edge" / "cpp"

# Kind, element type, elements, channels and inner of each entry.
ENTRIES = [(1, 1, 60, 5, 12), (1, 2, 37, 1, 1), (1, 3, 24, 4, 1), (2, 4, 5, 1, 1), (3, 1, 7, 1, 1), (5, 1, 4, 1, 1)]


@pytest.fixture(name="base")
def _base():
    """A base with a filter of each type."""
    rng = np.random.default_rng(0)
    data, entries = bytearray(rng.bytes(16)), []
    data[4:8] = b"TFL3"
    for kind, element, size, channels, inner in ENTRIES:
        dtype = DTYPES[element]
        values = rng.integers(-127, 128, size) if dtype.kind == "i" else rng.standard_normal(size)
        scales = (4, 1) if (kind, element) == (1, 3) else (0, 0)
        entries.append(Entry(kind, dtype, len(data), size, channels, inner, len(entries), *scales))
        data += values.astype(dtype).tobytes() + rng.bytes(-size * dtype.itemsize % 8 + 8)
    place = len(data)
    data += bytes(DIGEST) + rng.bytes(5)
    sha256 = hashlib.sha256(data).digest()
    return Base(bytes(data), Manifest(len(data), sha256, bytes(range(32)), 6, 0, 8, "none", tuple(entries), place))


@pytest.fixture(name="make_task")
def _make_task(base):
    """A function that returns a task for the base, with fields of one's own, as it is read from its file."""

    def make(ternary=True, seed=0, **changes):
        rng = np.random.default_rng(seed)
        masks = {}
        for place in (0, 1, 2):
            size = base.manifest.entries[place].size
            keep, sign = rng.random(size) < 0.7, rng.random(size) < 0.3
            planes = [keep, keep & sign] if ternary else [keep]
            masks[place] = np.stack([np.packbits(plane, bitorder="little") for plane in planes])
        ratios = {
            0: np.array([1.5, -2, 0, 1e-40, 3], "f4"),
            1: np.array([7e4], "f4"),
            2: np.array([1, -1, 1, -1], "f4"),
        }
        fields = {
            "name": "birds",
            "labels": ("wren", "tüvö\x1b[2J"),
            "augment": "resize(8,8)",
            "base_name": "small",
            "preprocessing": "x / 255",
            "flags": TERNARY if ternary else 0,
            "masks": masks,
            "ratios": ratios,
            "new_bytes": {3: bytes(range(20)), 4: bytes(8)},
            "kernel": rng.standard_normal((6, 2)).astype("f4"),
            "bias": np.ones(2, "f4"),
            "nbytes": 0,
            "digest": bytes(DIGEST),
            "manifest": base.manifest,
        }
        return Task.from_bytes(task_bytes(Task(**fields | changes), base.manifest), base.manifest)

    return make


def need_tools(*tools):
    """Skips a test if the machine cannot build the C++ patcher."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"needs {' and '.join(missing)} to build the C++ patcher")
    assert not missing, f"CI has no {' and '.join(missing)}"


def _build(folder, *options):
    """Builds the C++ patcher with CMake."""
    need_tools("cmake", "c++")
    options = ("-DPIGGYBACK_EDGE_WERROR=ON", *options)
    for command in (["-S", SOURCE, "-B", folder, *options], ["--build", folder, "--parallel", "2"]):
        done = subprocess.run(["cmake", *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="session", name="plain")
def _plain(tmp_path_factory):
    return _build(tmp_path_factory.mktemp("cpp") / "plain")


@pytest.fixture(scope="session", name="sanitized")
def _sanitized(tmp_path_factory):
    options = ("-DPIGGYBACK_EDGE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    return _build(tmp_path_factory.mktemp("cpp") / "sanitized", *options)
