"""Copies what `export.serving` added to a version of an export to the next one, to which tasks were added."""

import shutil
from pathlib import Path

from .folder import SECOND, read_description

BATCHING_FILE = Path("batching_params.pbtxt")
WARMUP_FILE = Path("assets.extra/tf_serving_warmup_requests")


def carry_over(source: Path, first: Path, second: Path) -> None:
    """Copies what `python -m export.serving` added to a version to a new one.

    A server loads a new version as soon as it is there, and reads both files while it loads. Warm-up requests stay
    right when tasks are added, since no signature changes its name; a signature that is new has none yet. They are left
    out if the new version takes images of another type.

    Args:
        source: The folder of the old version.
        first: The folder of the new version, with its description.
        second: The folder of its second servable.
    """
    old, new = (read_description(folder)["options"]["image_dtype"] for folder in (source, first))
    names = [BATCHING_FILE, WARMUP_FILE] if old == new else [BATCHING_FILE]
    for origin, target in ((source, first), (source.parent / SECOND / source.name, second)):
        for name in names:
            if (origin / name).is_file():
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(origin / name, target / name)
