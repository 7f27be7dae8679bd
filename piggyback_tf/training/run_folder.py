"""The output folder of a run: one process at a time, one set of settings, done once."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piggyback_tf.files import folder_lock, remove_leftovers, write_atomically
from piggyback_tf.training.errors import TrainingError


@contextlib.contextmanager
def run_folder(path: str | Path) -> Iterator[Path]:
    """Makes the folder and keeps it for this process while the block runs.

    Raises:
        TrainingError: If another process works in it, or it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"The output folder {str(folder)!r} cannot be made: {error.strerror}.") from error
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(folder_lock(folder))
        except RuntimeError as error:
            raise TrainingError(str(error)) from None
        remove_leftovers(folder)
        yield folder


def check_settings(folder: Path, settings: dict[str, Any], *, file: str = "settings.json", prefix: str = "--") -> None:
    """Writes the settings of a new run, or compares them with those the run was started with.

    Args:
        folder: The run's folder.
        settings: What decides the result, as JSON values.
        file: Name of the file that keeps them.
        prefix: What stands before a name in the message.

    Raises:
        TrainingError: If the folder was used with other settings; names each that differs.
    """
    path = folder / file
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        write_atomically(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        return
    try:
        earlier = json.loads(path.read_text())
    except ValueError as error:
        raise TrainingError(f"{path} is damaged ({error}). Choose another --output_dir.") from error
    changed = [
        f"{prefix}{name} was {_shown(earlier, name)} and is {_shown(settings, name)} now"
        for name in sorted(earlier.keys() | settings.keys())
        if _shown(earlier, name) != _shown(settings, name)
    ]
    if changed:
        raise TrainingError(
            f"The run in {str(folder)!r} was started with other settings: {'; '.join(changed)}. Use the same ones to "
            "go on, or choose another --output_dir."
        )


def _shown(settings: dict[str, Any], name: str) -> str:
    return json.dumps(settings[name]) if name in settings else "not set"
