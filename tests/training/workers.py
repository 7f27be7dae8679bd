"""Workers of one run on this machine, each a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def free_ports(count: int) -> list[int]:
    """Returns ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]


def tf_config(ports: list[int], index: int) -> str:
    """Returns the `TF_CONFIG` of a worker."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


class Workers:
    """Starts the same command for each worker; at the end of the block all are gone.

    Args:
        folder: Where their output goes.
        commands: What Python runs, for each worker.
        folders: In which folder each works.
    """

    def __init__(self, folder: Path, commands: list[list[str]], folders: list[Path] | None = None):
        ports, folder = free_ports(len(commands)), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"log{index}.txt" for index in range(len(commands))]
        self.processes = []
        for index, command in enumerate(commands):
            with self.logs[index].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        cwd=folders[index] if folders else ROOT,
                        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CONFIG": tf_config(ports, index)},
                    )
                )

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()  # Also one that is stopped.
            process.wait()

    def wait_for(self, text: str, index: int = 0, seconds: float = 100, after: str = "") -> None:
        """Waits until a worker has said something, perhaps after something else."""
        deadline = time.monotonic() + seconds
        while text not in (self.said(index).partition(after)[2] if after else self.said(index)):
            assert time.monotonic() < deadline, (text, self.said(index))
            assert self.processes[index].poll() is None, self.said(index)
            time.sleep(0.02)

    def wait(self, index: int, seconds: float = 100) -> int:
        """Returns with which status a worker has ended."""
        return self.processes[index].wait(seconds)

    def send(self, index: int, number: signal.Signals) -> None:
        """Sends a worker a signal."""
        self.processes[index].send_signal(number)

    def said(self, index: int) -> str:
        """Returns what a worker has printed so far."""
        return self.logs[index].read_text(errors="replace")
