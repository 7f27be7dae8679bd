"""What a model of design `switch`, `input` or `plain` says of itself; nothing here needs TensorFlow."""

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


def append_files(
    model: str | os.PathLike, description: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> None:
    """Adds a description, JSON values, and texts by the names of files to the file of a model."""
    with zipfile.ZipFile(model, "a") as archive:
        files = {**(texts or {}), DESCRIPTION: json.dumps({"format": FORMAT, **description}, indent=1)}
        for name, text in files.items():
            # Without a date: equal exports give equal bytes.
            archive.writestr(zipfile.ZipInfo(name), text)


def read_model_description(model: str | os.PathLike) -> dict[str, Any]:
    """Returns the description that `append_files` added to a model.

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
        raise PackError(f"{os.fspath(model)!r} is no base, and no model that says what it is: {error}.") from error
    if written != FORMAT:
        raise PackError(f"{os.fspath(model)!r} is of format {written}; this package reads {FORMAT}.")
    return found
