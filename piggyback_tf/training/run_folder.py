"""The output folder of a run: one process at a time, one set of settings, and no leftovers of a run that was killed.

Those are the temporary folders of files that were being written. Where nothing was trained, what was written before the
first step goes, too, so that other settings may be given.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from piggyback_tf.file_names import BEFORE_TRAINING, OWN_FOLDERS, SETTINGS_FILE, TENSORBOARD_FOLDER
from piggyback_tf.files import (
    LOCK_FILE,
    PathError,
    atomic_file,
    folder_lock,
    is_text,
    local_path,
    make_folder,
    remove_leftovers,
    shown_path,
    write_atomically,
)
from piggyback_tf.training.errors import TrainingError

_NOT_SET = object()
# Settings that say most of a difference: another method has other settings besides.
_FIRST = ("method", "backbone", "weights", "data", "tasks")


@contextlib.contextmanager
def run_folder(path: str | Path) -> Iterator[Path]:
    """Makes the folder and keeps it for this process while the block runs.

    A folder in which nothing was trained, such as that of a run whose data were not found, is as if it were new. What
    is removed from it, and from its folders of baselines and tasks, is what a killed run left there of its own.

    Raises:
        TrainingError: If another process works in it, or it cannot be made.
    """
    try:
        folder = local_path(path, "--output_dir=")
        # TensorFlow writes no files to others.
        if not is_text(str(folder)):
            raise PathError(f"The name of the output folder '{shown_path(folder)}' is not in UTF-8. Name another one.")
        make_folder(folder)
    except PathError as error:
        raise TrainingError(str(error)) from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except (RuntimeError, PathError) as error:
            raise TrainingError(str(error)) from None
        own = [folder, *_own_folders(folder)]
        for each in own:
            remove_leftovers(each)
        if _is_untrained(folder):
            for leftover in [each / name for each in own for name in BEFORE_TRAINING]:
                leftover.unlink(missing_ok=True)
        yield folder


def check_file_name(folder: Path, name: str, cure: str) -> None:
    """Finds out whether a result could be written under a name, before hours are spent on it.

    Args:
        folder: The run's folder.
        name: The name of the file.
        cure: What to do if not.

    Raises:
        TrainingError: If a file of this name, or the temporary one from which it is made, cannot be written.
    """
    path = folder / name
    try:
        with contextlib.suppress(FileNotFoundError):
            path.lstat()
        with contextlib.suppress(_WrittenError), atomic_file(path):
            raise _WrittenError
    except OSError as error:
        raise TrainingError(
            f"A file {name!r}, of {len(os.fsencode(name))} bytes in its name, cannot be written to {str(folder)!r}: "
            f"{error.strerror or error}. {cure}"
        ) from error


class _WrittenError(Exception):
    """Ends the writing of a file that nobody wants."""


def check_settings(
    folder: Path,
    settings: dict[str, Any],
    *,
    file: str = SETTINGS_FILE,
    prefix: str = "--",
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
    """Writes the settings of a new run, or compares them with those the run was started with.

    Args:
        folder: The run's folder.
        settings: What decides the result, as JSON values.
        file: Name of the file that keeps them.
        prefix: What stands before a name in the message.
        complete: Returns all that a record means, also what it leaves out, before it is compared.

    Raises:
        TrainingError: If the folder was used with other settings; names each that differs. If one is no text in
            Unicode, as packs and reports keep it.
    """
    path = folder / file
    settings = json.loads(json.dumps(settings))
    for name, value in settings.items():
        if not is_text(json.dumps(value, ensure_ascii=False)):
            raise TrainingError(
                f"{prefix}{name} must be text in UTF-8, as packs and reports keep it. Received: {json.dumps(value)}. "
                "Rename what it names, or name a link to it."
            )
    if not path.exists():
        write_atomically(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        return
    try:
        earlier = complete(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error
    settings = complete(settings)
    changed = [
        f"{prefix}{name} was {_shown(earlier, name)} and is {_shown(settings, name)} now"
        for name in sorted(earlier.keys() | settings.keys(), key=_place)
        if earlier.get(name, _NOT_SET) != settings.get(name, _NOT_SET)
    ]
    if changed:
        raise TrainingError(
            f"The run in {str(folder)!r} was started with other settings: {'; '.join(changed)}. Use the same ones to "
            "go on, choose another --output_dir, or delete this folder to begin anew."
        )


def _place(name: str) -> tuple[bool, str]:
    return name not in _FIRST, name


def _own_folders(folder: Path) -> list[Path]:
    """Returns the folders of a run's baselines and tasks, but none that belongs to another run, or lies elsewhere."""
    found = [path for pattern in OWN_FOLDERS for path in folder.glob(pattern)]
    return [path for path in found if path.is_dir() and not any(map(_is_foreign, _between(folder, path)))]


def _between(folder: Path, path: Path) -> list[Path]:
    """Returns a path, and the folders above it that lie in a folder."""
    return [path, *(above for above in path.parents if folder in above.parents)]


def _is_foreign(folder: Path) -> bool:
    """Whether a folder in that of a run is none of its own: a link, or with a lock, which the folder of a run has."""
    return folder.is_symlink() or (folder / LOCK_FILE).exists()


def _is_untrained(folder: Path) -> bool:
    """Whether a folder is that of a run, and holds nothing but what is written before the first training step."""
    try:
        settings = json.loads((folder / SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return False
    if not (isinstance(settings, dict) and "method" in settings):
        return False  # Other programs have files of this name too.
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return all(path.name in (*BEFORE_TRAINING, LOCK_FILE) or TENSORBOARD_FOLDER in path.parts for path in files)


def damaged(path: Path, error: Exception) -> TrainingError:
    """Returns the error for a file of a run that does not hold what was written there."""
    return TrainingError(f"{path} is damaged ({error}). Choose another --output_dir.")


def _shown(settings: dict[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "not set"
