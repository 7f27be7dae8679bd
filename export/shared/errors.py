"""What exports raise."""

import re

from piggyback_tf.files import without_temporary


class ExportError(Exception):
    """An export cannot be written, or is not what it should be; the message says why."""


def reason_of(message: str) -> str:
    """Returns what an error of TensorFlow says without the names of operations and temporary files."""
    return without_temporary(re.sub(r"\{\{.*?\}\} *| *\[Op:\w+\]$", "", message)).rstrip(".")
