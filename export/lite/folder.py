"""The folder of an export for LiteRT: written whole or not at all."""

import contextlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from piggyback_tf.files import behind_link
from piggyback_tf.packs import PackError

from ..edge.piggyback_edge import EdgeError
from ..shared.errors import ExportError
from ..shared.folders import new_folders

BASE_FILE, MANIFEST_FILE, MANIFEST_JSON, TASK_SUFFIX = "base.tflite", "manifest.bin", "manifest.json", ".edge"
# A copy of `piggyback_tf/data/images.py`, which `piggyback_edge.py` imports by this name.
IMAGES_FILE = "piggyback_images.py"


def is_patched(model: Path) -> bool:
    """Returns whether a .tflite file is a base of design patch, with its manifest beside it; else it says what it is.

    Raises:
        ExportError: If it is neither.
    """
    # Behind every other model is its description, in a zip archive.
    if zipfile.is_zipfile(model):
        return False
    if not model.with_name(MANIFEST_FILE).is_file():
        raise ExportError(
            f"{str(model)!r} is no export: there is no {MANIFEST_FILE} beside it, as beside a base of design patch, "
            "and it is no model of another design."
        )
    return True


def refuse_other_task(path: Path, is_same: Callable[[], bool]) -> None:
    """Refuses to write a task's file over one that holds another task.

    Args:
        path: The file to be written.
        is_same: Reads what is there, and returns whether it is the task that is to be written.

    Raises:
        ExportError: If what is there is another task, another training of it, or damaged.
    """
    try:
        if not path.exists() or is_same():
            return
        reason = "holds another task of this name, or another training of it"
    except (EdgeError, PackError) as error:
        reason = f"is no file of this task ({str(error).rstrip('.')})"
    raise ExportError(
        f"{str(path)!r} is there already and {reason}. Devices may have it: delete it, rename the task, or name "
        "another folder with --output."
    )


def check_free(output: Path) -> None:
    """Raises an `ExportError` if there is something at the place of an export that is no empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ExportError(
            f"--output={output}: this is there already, and a base that devices may have is never overwritten. Name a "
            "new folder, or add tasks to what is there with --base."
        )


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder, which becomes `output` when the block ends well.

    Args:
        output: The folder to write; the one it is in is made if need be.

    Raises:
        ExportError: If there is something at this place that is no empty folder.
        OSError: If the folder cannot be written.
    """
    with new_folders([behind_link(output)], lambda: check_free(output)) as (folder,):
        folder.mkdir()
        yield folder
