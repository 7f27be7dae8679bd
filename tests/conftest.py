"""What all tests share: quiet TensorFlow, and the folder of real data if there is one."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

from tests import shapes
from tests.allowed_skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: F401 (hooks)

# Tests run in two processes, which take a file each. What is in these folders goes to one of them together, since its
# fixtures take long to make: exports, a compiled patcher, servers. The first that fits counts.
TOGETHER = {"tests/export/edge": "devices", "tests/export/lite": "devices", "tests/export": "servers"}
# These, and then files that take longest, go first, so that no process is left alone with them. With
# `--no-loadscope-reorder` pytest-xdist keeps this order; by itself it would put files with the most tests first.
LONGEST = (
    "test_train.py",
    "test_contract.py",
    "test_stress.py",
    "test_quick.py",
    "test_fit.py",
    "test_runner.py",
    "test_networks.py",
    "test_backbone_weights.py",
    "test_resume.py",
)


def unit_of(nodeid: str) -> str:
    """Returns the name of what goes to one process as a whole: a file, or several folders."""
    file = nodeid.partition("::")[0]
    return next((name for folder, name in TOGETHER.items() if file.startswith(f"{folder}/")), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object | None:
    from xdist.scheduler import LoadFileScheduling

    class UnitScheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    return UnitScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    units = list(dict.fromkeys(TOGETHER.values()))
    places = {name: place for place, name in enumerate([*units, *LONGEST])}

    def place(item: pytest.Item) -> int:
        return places.get(unit_of(item.nodeid), places.get(item.path.name, len(places)))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    shapes.check_all()
    # What TensorFlow and Keras are made of stays; to look at it for garbage again and again takes time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Lets go of a test's graphs, which would fill the memory of a process that runs hundreds of tests."""
    from piggyback_tf.training.graphs import released_graphs

    with released_graphs():
        return (yield)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images and weights; tests that need it are skipped without it."""
    path = os.environ.get("PIGGYBACK_REALDATA")
    if not path:
        pytest.skip("needs the environment variable PIGGYBACK_REALDATA: a folder of real images and weights")
    return Path(path)
