"""All that a TensorFlow Serving deployment needs beside an export."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from piggyback_tf.commands.absl_command import Program
from piggyback_tf.commands.answers import Answer, UsageError
from piggyback_tf.extras import need
from piggyback_tf.flags import ESSENTIALS, define, define_config_flags, given_path, read_config
from piggyback_tf.lazy import lazy_names
from piggyback_tf.quiet import load_tensorflow

from .deployment.options import ServingOptions
from .shared.errors import ExportError

if TYPE_CHECKING:
    from .deployment.write import write_deployment

__all__ = ["write_deployment"]

# A command line is checked before TensorFlow is loaded.
__getattr__, __dir__ = lazy_names(__package__, {"write_deployment": "deployment.write"}, __name__)

FLAGS = flags.FLAGS
_TEXT = """Writes what TensorFlow Serving needs to serve an export.

    {call} DIR
    {call} DIR --stable=3 --canary=4 --output=FOLDER

Writes `models.config`, `batching_parameters.txt`, `monitoring.config`, `docker-compose.yml`, `kubernetes.yaml` and
`client.py` to `DIR/deployment` or FOLDER. Also writes warm-up requests to each version of both models, and
`batching_params.pbtxt` to each version of the first. If you run the command again, it replaces its own files. If a file
was changed since, the command ends with an error and writes nothing, unless you give --overwrite.
"""


def define_flags() -> None:
    """Defines the flags of the command."""
    output = "Folder of the server's configuration; DIR/deployment by default."
    define(flags.DEFINE_string, "output", None, output, ESSENTIALS)
    overwrite = "Replace files that were changed or written by somebody else."
    define(flags.DEFINE_bool, "overwrite", False, overwrite, ESSENTIALS)
    define_config_flags(ServingOptions)


def _run(arguments: list[str]) -> Answer:
    need("tensorflow_serving")
    options, output = read_config(ServingOptions), given_path("output")
    if not Path(arguments[0]).is_dir():
        raise UsageError(f"{arguments[0]!r} is no export: there is no such folder.")
    load_tensorflow()
    from .deployment.write import write_deployment

    files = [str(path) for path in write_deployment(arguments[0], output, options, overwrite=FLAGS.overwrite)]
    return Answer({"files": files}, "\n".join(files))


PROGRAM = Program(_TEXT, define_flags, _run, arguments=("DIR",), errors=(ExportError,))

if __name__ == "__main__":
    PROGRAM(sys.argv[1:], __spec__.name)
