"""Runs tests in processes, but not for ever: when the time is over it says which test each is at, and ends all.

A limit for each test (`timeout` in pyproject.toml) breaks off one that waits in Python. What waits in TensorFlow, or a
pytest that waits for a process of its own, ends only here.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# Seconds in which a process writes where each of its threads is, after which it is killed.
_LAST_WORDS = 3.0


def run(command: Sequence[str], folder: Path, environment: Mapping[str, str], running: Path, end: float) -> int:
    """Returns the status of a command, or 1 if it was not over in time.

    Args:
        command: Program and arguments. It gets a group of processes of its own.
        folder: The folder in which it runs.
        environment: Its variables.
        running: A folder in which `at` says what is running.
        end: When all processes are ended, in seconds since 1970.
    """
    with subprocess.Popen(command, cwd=folder, env=environment, process_group=0) as process:
        try:
            return process.wait(max(0.0, min(end - time.time(), 1e6)))
        except subprocess.TimeoutExpired:
            _end(process.pid, running)
            return 1
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def _end(group: int, running: Path) -> None:
    """Says what is running, lets those processes print where they are, and kills the group."""
    files = sorted(running.iterdir())
    print("The time is over.", *(f"Still running: {file.read_text()}" for file in files), sep="\n", flush=True)
    for file in files:
        with contextlib.suppress(ProcessLookupError):  # It has ended, and left this.
            os.kill(int(file.name), signal.SIGABRT)  # pytest has faulthandler on.
    if files:
        time.sleep(_LAST_WORDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


@contextlib.contextmanager
def at(name: str, running: Path) -> Iterator[None]:
    """Says what this process runs, as long as it does. Who dies in it leaves that.

    Args:
        name: The name of a test.
        running: The folder that `run` was told.
    """
    file = running / str(os.getpid())
    file.write_text(name)
    yield
    file.unlink(missing_ok=True)
