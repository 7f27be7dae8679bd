"""Commands in processes that begin with Keras imported, since importing it takes longer than most commands."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CONTEXT = multiprocessing.get_context("forkserver")
# Only what is installed: the repository's own modules are found by each process itself.
_CONTEXT.set_forkserver_preload(["keras", "safetensors", "matplotlib.pyplot", "sklearn.datasets"])


def run_forked(*arguments: object, cwd: Path = ROOT, timeout: float = 300) -> subprocess.CompletedProcess:
    """Runs what `python ARGUMENTS` would, and waits for it.

    Args:
        arguments: `-m MODULE`, `-c PROGRAM` or the path of a program, and its arguments.
        cwd: The working directory.
        timeout: Seconds, after which the process is killed.

    Returns:
        Exit status, stdout and stderr.

    Raises:
        subprocess.TimeoutExpired: If it does not end.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "stdout"), Path(folder, "stderr")
        process = start_forked(*arguments, cwd=cwd, output=output)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(process.name, timeout, *(path.read_bytes() for path in output))
        return subprocess.CompletedProcess(arguments, process.exitcode, *(path.read_text() for path in output))


def start_forked(
    *arguments: object, cwd: Path = ROOT, output: tuple[object, object] = (os.devnull, os.devnull)
) -> multiprocessing.process.BaseProcess:
    """Starts what `python ARGUMENTS` would; stdout and stderr go into two files."""
    process = _CONTEXT.Process(target=_work, args=([str(argument) for argument in arguments], cwd, output), daemon=True)
    process.start()
    return process


def _work(arguments: list[str], cwd: Path, output: tuple[object, object]) -> None:
    for number, path in enumerate(output, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(cwd)
    if arguments[0] == "-m":
        sys.path.insert(0, str(cwd))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.path.insert(0, str(Path(cwd, arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
