"""The folder of an export for LiteRT: written whole or not at all."""

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from export.servable.folder import ExportError
from piggyback_tf.files import flush

BASE_FILE, MANIFEST_FILE, MANIFEST_JSON, TASK_SUFFIX = "base.tflite", "manifest.bin", "manifest.json", ".edge"


def is_patched(model: Path) -> bool:
    """Returns whether a .tflite file is a base of design patch, with its manifest beside it; else it takes masks.

    Raises:
        ExportError: If it is neither.
    """
    # Behind a model that takes masks as inputs is its description, as a zip archive.
    if zipfile.is_zipfile(model):
        return False
    if not model.with_name(MANIFEST_FILE).is_file():
        raise ExportError(
            f"{str(model)!r} is no export: there is no {MANIFEST_FILE} beside it, as beside a base of design patch, "
            "and it is no model of design switch or input."
        )
    return True


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `output` when the block ends well.

    Args:
        output: The folder to write; the one it is in is made if need be.

    Raises:
        ExportError: If there is something at this place that is no empty folder.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(
            f"--output={output}: this is there already, and a base that devices may have is never overwritten. Name a "
            "new folder, or add tasks to what is there with --base."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output.name}.tmp", dir=output.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        temporary.replace(output)
        flush(output.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
