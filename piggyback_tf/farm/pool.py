"""Works on the rows of a farm, several side by side, each by a process of `train`, and again where one died."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from piggyback_tf.farm.rows import TaskRow
from piggyback_tf.farm.state import DONE, FAILED, REFUSED, RowFolder, RowState, folder_of_row

# The statuses of `train` (docs/commands.md): it was done; something that was given is wrong; a fault of the program.
_STATUS_DONE, _STATUS_WRONG, _STATUS_FAULT = 0, 2, 70
# What Python runs for a row.
TRAIN = ("-m", "piggyback_tf", "train")
# Runs a command that the system kills as soon as the process that started it is gone, however that went. Linux alone
# can do that. Elsewhere the command goes on, and keeps its folder until it is done.
_WITH_PARENT = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None)
if hasattr(libc, "prctl"):
    libc.prctl(1, int(signal.SIGKILL))
if os.getppid() != int(sys.argv[1]):
    sys.exit("The farm is gone.")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@dataclasses.dataclass(frozen=True)
class Farm:
    """What all rows of a table have in common.

    Attributes:
        folder: Where everything is written.
        flags: Flags of `train` for all rows; those of a row come after them and count.
        attempts: How often a row is tried whose process dies.
        threads: How many threads a training computes with; None for as many as there are cores.
    """

    folder: Path
    flags: Sequence[str] = ()
    attempts: int = 3
    threads: int | None = None

    def learn(self, row: TaskRow, running: "Running") -> RowState:
        """Learns a row, unless that is done; returns how it went.

        Raises:
            Interrupted: If `running` was ended meanwhile.
        """
        files = folder_of_row(self.folder, row.task)
        files.folder.mkdir(parents=True, exist_ok=True)
        state = files.read()
        flags = (*self.flags, *row.flags)
        # With other flags `train` says in which they differ from those of the run that is there.
        done = state.status == DONE and state.flags == flags and files.is_learned
        tried = 0
        # What was refused may have been mended since, and to find that out takes a second.
        while not done and tried < self.attempts:
            tried += 1
            # Written first: an attempt counts though nobody sees its end.
            state = dataclasses.replace(state, attempts=state.attempts + 1)
            files.write(state)
            started = time.monotonic()
            status, error, again = self._attempt(flags, files, running)
            seconds = round(state.seconds + time.monotonic() - started, 1)
            state = RowState(status, state.attempts, seconds, error, flags)
            files.write(state)
            done = not again
        return state

    def _attempt(self, given: Sequence[str], files: RowFolder, running: "Running") -> tuple[str, str, bool]:
        """Trains in a process of its own; returns the row's status, why it is not done, and whether to try again."""
        flags = [*given, f"--output_dir={files.run}", "--json", "--verbose=2"]
        command = [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *TRAIN, *flags]
        # Where nothing is installed, the package is found as it was found here.
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        if self.threads is not None:
            environment = {"TF_NUM_INTRAOP_THREADS": str(self.threads)} | environment
        with files.log.open("ab") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment)
            with running.process(process):
                answer, _ = process.communicate()
        if process.returncode == _STATUS_DONE:
            return DONE, "", False
        if process.returncode == _STATUS_WRONG:
            return REFUSED, _error(answer) or f"The training ended with status 2; see {files.log}.", False
        if process.returncode == _STATUS_FAULT:
            return FAILED, f"The training has a fault; {files.log} says where.", False
        return FAILED, f"The training was ended by {_cause(process.returncode)}; see {files.log}.", True


class Interrupted(Exception):
    """The farm was ended; what runs is ended with it."""


class Running:
    """The processes that run now, which end together.

    A process that Linux is to end with its parent ends with the *thread* that started it. Each thread here waits for
    the process that it has started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._over = False

    @contextlib.contextmanager
    def process(self, process: subprocess.Popen):
        """Counts a process as running, and raises `Interrupted` at its end if it was ended here."""
        with self._lock:
            self._processes.add(process)
            if self._over:
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)
        if self._over:
            raise Interrupted

    def end(self) -> None:
        """Kills all; none may start any more. A training goes on after its last completed epoch."""
        with self._lock:
            self._over = True
            for process in self._processes:
                process.kill()


def learn_rows(
    rows: Sequence[TaskRow], farm: Farm, jobs: int, told: Callable[[TaskRow, RowState], None]
) -> dict[str, RowState]:
    """Learns rows side by side.

    Args:
        rows: The rows, begun in this order.
        farm: What they have in common.
        jobs: How many trainings run at once.
        told: Is called in this thread as soon as a row is done or given up.

    Returns:
        How each went, by the name of its task.
    """
    running, states = Running(), {}
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(farm.learn, row, running): row for row in rows}
        try:
            for future in concurrent.futures.as_completed(futures):
                row = futures[future]
                states[row.task] = future.result()
                told(row, states[row.task])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            running.end()
            raise
    return states


def _error(answer: bytes) -> str:
    """Returns the sentence of an answer in JSON, or an empty one."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(answer)["error"])
    return ""


def _cause(status: int) -> str:
    """Returns by what a process was ended."""
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
