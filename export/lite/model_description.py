"""What a model that takes masks as inputs says of itself; nothing here needs TensorFlow."""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

from piggyback_tf.packs import PackError

# Behind the model, in a zip archive, which is how files that belong to a .tflite are kept; LiteRT takes no notice.
DESCRIPTION = "piggyback.json"
FORMAT = 1


def append_description(model: str | os.PathLike, description: Mapping[str, Any]) -> None:
    """Adds a description, JSON values, to the file of a model."""
    with zipfile.ZipFile(model, "a") as archive:
        # Without a date: equal exports give equal bytes.
        archive.writestr(zipfile.ZipInfo(DESCRIPTION), json.dumps({"format": FORMAT, **description}, indent=1))


def read_description(model: str | os.PathLike) -> dict[str, Any]:
    """Returns what `append_description` added to a model.

    Raises:
        PackError: If the file is no such model.
        OSError: If it cannot be read.
    """
    try:
        with zipfile.ZipFile(model) as archive:
            found = json.loads(archive.read(DESCRIPTION))
        written = found["format"]
    # An archive with damaged headers may say that it is encrypted, or compressed in a way that Python does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, LookupError, TypeError, ValueError) as error:
        raise PackError(f"{os.fspath(model)!r} is no model that takes masks as inputs: {error}.") from error
    if written != FORMAT:
        raise PackError(f"{os.fspath(model)!r} is of format {written}; this package reads {FORMAT}.")
    return found
