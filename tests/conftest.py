"""What all tests share: quiet TensorFlow, and the folder of real data if there is one."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest

# Files that take longest. Tests run in two processes with a file each: these first, so that none is left alone. With
# `--no-loadscope-reorder` pytest-xdist keeps this order; by itself it would put files with the most tests first.
LONGEST = (
    "test_train.py",
    "test_contract.py",
    "test_command.py",
    "test_fit.py",
    "test_runner.py",
    "test_verify.py",
    "test_networks.py",
    "test_backbone_weights.py",
    "test_commands.py",
    "test_bad_input.py",
    "test_resume.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    # What TensorFlow and Keras are made of stays; to look at it for garbage again and again takes time.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images and weights; tests that need it are skipped without it."""
    path = os.environ.get("PIGGYBACK_REALDATA")
    if not path:
        pytest.skip("needs the environment variable PIGGYBACK_REALDATA: a folder of real images and weights")
    return Path(path)
