"""What TensorFlow and absl write to stderr, without what says nothing to a caller."""

import contextlib
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator

from absl import logging as absl_logging

# What TensorFlow, XLA and LiteRT write about themselves on any machine, whatever the log level.
CHATTER = re.compile(
    r"I\d{4} |\d{4}-.*: I |INFO: |WARNING: All log messages before absl|E\d{4} .*failed call to cuInit|"
    r"E\d{4} .*oneDNN supports|fully_quantize: \d|\s*$"
)
# Copies stdin to stdout without lines that match its argument.
_FILTER = """
import re, sys
chatter = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not chatter.match(line):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


def load_tensorflow() -> None:
    """Imports TensorFlow and Keras without the lines that they write about themselves; any other line is passed on."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with filtered_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        # The search for GPUs writes to stderr as well.
        tf.config.list_physical_devices()
    # Of its Python part only what goes wrong is said.
    tf.get_logger().setLevel("ERROR")


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Leaves the chatter out of what is written to stderr while the block runs, by Python or not.

    The lines go through a process of their own: what a crash has to say must arrive, too.
    """
    # TensorFlow's C++ writes to the file descriptor, past `sys.stderr`.
    sys.stderr.flush()
    saved = os.dup(2)
    # In a session of its own, Ctrl-C does not reach it.
    program = [sys.executable, "-I", "-S", "-c", _FILTER, CHATTER.pattern]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=saved, start_new_session=True)
    os.dup2(child.stdin.fileno(), 2)
    child.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
        child.wait()


def open_streams() -> None:
    """Opens stdout and stderr where a caller closed them (`2>&-`), so that what is written there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 (for the whole process)


def _says_more(record: logging.LogRecord) -> bool:
    """Whether Matplotlib, which Keras imports for any command, says more than that it cannot make its own folders."""
    return not re.match("mkdir -p failed for path|Matplotlib created a temporary cache dir", record.getMessage())


def plain_log() -> None:
    """Makes the package's log sentences on stderr, without time, process and place."""
    # Where the user's folder cannot be written: nothing that is needed is kept there.
    logging.getLogger("matplotlib").addFilter(_says_more)
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, absl_logging.ABSLHandler)]
    if not any(isinstance(handler.formatter, _Sentence) for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(_Sentence())
        root.addHandler(handler)


class _Sentence(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        return text if record.levelno <= logging.INFO else f"{record.levelname.capitalize()}: {text}"
