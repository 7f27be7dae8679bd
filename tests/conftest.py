"""What all tests share: quiet TensorFlow, and the folder of real data if there is one."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real images and weights; tests that need it are skipped without it."""
    path = os.environ.get("PIGGYBACK_REALDATA")
    if not path:
        pytest.skip("needs the environment variable PIGGYBACK_REALDATA: a folder of real images and weights")
    return Path(path)
