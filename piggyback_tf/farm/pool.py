"""Works on the rows of a farm, several side by side, each by a process of `train`, and again where one died."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from piggyback_tf.farm.rows import TaskRow
from piggyback_tf.farm.state import DONE, FAILED, REFUSED, RowFolder, RowState, folder_of_row
from piggyback_tf.files import folder_lock

# The statuses of `train` (docs/commands.md): it was done; something that was given is wrong; a fault of the program.
_STATUS_DONE, _STATUS_WRONG, _STATUS_FAULT = 0, 2, 70
# What Python runs, and for a row.
PROGRAM = ("-m", "piggyback_tf")
TRAIN = (*PROGRAM, "train")
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
        directory: Where trainings run, from which relative paths of flags count; None for where this process runs.
        patience: How many seconds a row waits for another process that works on it, such as one on a machine that
            was given up, and goes on all the same.
    """

    folder: Path
    flags: Sequence[str] = ()
    attempts: int = 3
    threads: int | None = None
    directory: Path | None = None
    patience: float = 120.0

    def learn(self, row: TaskRow, running: "Running", before: int | None = None) -> RowState:
        """Learns a row, unless that is done; returns how it went.

        Args:
            row: The row.
            running: The processes that run beside it.
            before: How many attempts do not count; None for all that there were.

        Raises:
            Interrupted: If `running` was ended meanwhile.
        """
        files = folder_of_row(self.folder, row.task)
        files.folder.mkdir(parents=True, exist_ok=True)
        flags = (*self.flags, *row.flags)
        try:
            with running.alone_in(files.folder, self.patience):
                return self._learn_alone(files, flags, running, before)
        except Busy as error:  # What it writes of the row counts.
            return dataclasses.replace(files.read(), status=FAILED, error=str(error), flags=flags)

    def _learn_alone(
        self, files: RowFolder, flags: tuple[str, ...], running: "Running", before: int | None
    ) -> RowState:
        state = files.read()
        # With other flags `train` says in which they differ from those of the run that is there.
        if state.status == DONE and state.flags == flags and files.is_learned:
            return state
        last = (state.attempts if before is None else before) + self.attempts
        if state.attempts >= last:
            error = f"Whatever worked on it was ended, {self.attempts} times; see {files.log}."
            state = dataclasses.replace(state, status=FAILED, error=error, flags=flags)
            files.write(state)
            return state
        again = True
        # What was refused may have been mended since, and to find that out takes a second.
        while again and state.attempts < last:
            # Written first: an attempt counts though nobody sees its end.
            state = dataclasses.replace(state, attempts=state.attempts + 1)
            files.write(state)
            started = time.monotonic()
            status, error, again = self._attempt(flags, files, running)
            seconds = round(state.seconds + time.monotonic() - started, 1)
            state = RowState(status, state.attempts, seconds, error, flags, platform.node())
            files.write(state)
        return state

    def _attempt(self, given: Sequence[str], files: RowFolder, running: "Running") -> tuple[str, str, bool]:
        """Trains in a process of its own; returns the row's status, why it is not done, and whether to try again."""
        flags = [*given, f"--output_dir={files.run}", "--json", "--verbose=2"]
        with files.log.open("ab") as log:
            process = start_with_parent(
                (*TRAIN, *flags), self.threads, stdout=subprocess.PIPE, stderr=log, cwd=self.directory
            )
            with running.process(process):
                answer, _ = process.communicate()
        if process.returncode == _STATUS_DONE:
            return DONE, "", False
        if process.returncode == _STATUS_WRONG:
            return REFUSED, error_in(answer) or f"The training ended with status 2; see {files.log}.", False
        if process.returncode == _STATUS_FAULT:
            return FAILED, f"The training has a fault; {files.log} says where.", False
        return FAILED, f"The training was ended by {what_ended(process.returncode)}; see {files.log}.", True


class Interrupted(Exception):
    """The farm was ended; what runs is ended with it."""


class Busy(Exception):
    """Another process works on a row, and does not end."""


class Running:
    """The processes that run now, which end together.

    A process that Linux is to end with its parent ends with the *thread* that started it. Each thread here waits for
    the process that it has started.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._over = threading.Event()

    @contextlib.contextmanager
    def process(self, process: subprocess.Popen):
        """Counts a process as running, and raises `Interrupted` at its end if it was ended here."""
        with self._lock:
            self._processes.add(process)
            if self._over.is_set():
                process.kill()
        try:
            yield
        finally:
            with self._lock:
                self._processes.discard(process)
        if self._over.is_set():
            raise Interrupted

    @contextlib.contextmanager
    def alone_in(self, folder: Path, patience: float):
        """Keeps a folder for this thread, for which it waits.

        Raises:
            Busy: If another process still works there after so many seconds.
            Interrupted: If all was ended meanwhile.
        """
        deadline = time.monotonic() + patience
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(folder_lock(folder))
                    break
                except RuntimeError as error:
                    if time.monotonic() >= deadline:
                        raise Busy(str(error)) from None
                if self._over.wait(0.5):
                    raise Interrupted
            yield

    def end(self) -> None:
        """Kills all; none may start any more. A training goes on after its last completed epoch."""
        with self._lock:
            self._over.set()
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


def start_with_parent(arguments: Sequence[str], threads: int | None, **options: Any) -> subprocess.Popen:
    """Starts a process of Python that on Linux ends with the thread that calls this.

    Args:
        arguments: What Python is given.
        threads: How many threads TensorFlow computes with there; None for as many as there are cores.
        **options: Of `subprocess.Popen`.
    """
    # Where nothing is installed, the package is found as it was found here.
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    if threads is not None:
        environment = {"TF_NUM_INTRAOP_THREADS": str(threads)} | environment
    command = [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *arguments]
    return subprocess.Popen(command, env=environment, **options)


def error_in(answer: bytes) -> str:
    """Returns the sentence of an answer in JSON, or an empty one."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(answer)["error"])
    return ""


def what_ended(status: int) -> str:
    """Returns by what a process was ended."""
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"
