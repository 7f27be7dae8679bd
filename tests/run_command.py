"""Commands in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_command(*arguments, **environment):
    """Runs a command.

    Returns:
        The exit status, the lines of stdout, stderr, and whether TensorFlow was loaded.
    """
    program = (
        "import atexit, runpy, sys; sys.argv[0] = 'piggyback_tf'; "
        "atexit.register(lambda: print('tensorflow' in sys.modules or 'keras' in sys.modules)); "
        "runpy.run_module('piggyback_tf', run_name='__main__', alter_sys=True)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )
    *lines, loaded = run.stdout.splitlines()
    return run.returncode, lines, run.stderr, loaded == "True"
