"""The files of packs that a command line means."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from piggyback_tf.file_names import PACK_SUFFIX
from piggyback_tf.files import with_home
from piggyback_tf.junk import JUNK, is_junk
from piggyback_tf.packs.container import PackError
from piggyback_tf.remote import is_url


def find_packs(sources: Sequence[str], option: str = "--packs=") -> list[str]:
    """Returns the files of packs that are meant.

    Args:
        sources: Files, URLs, folders (all `*.task.safetensors` in them) and glob patterns. Folders and patterns stand
            for no junk, such as the files `._NAME` of macOS.
        option: What stands before the sources where they were given, for errors.

    Returns:
        Files and URLs in the order of the sources, those of one folder or pattern sorted.

    Raises:
        PackError: If a source stands for no file, or there is none.
    """
    found: list[str] = []
    for source in map(with_home, sources):
        if is_url(source) or Path(source).is_file():
            matches = [source]
        elif Path(source).is_dir():
            matches = [str(path) for path in packs_in(source)]
        else:
            matches = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 (patterns may be absolute)
            # What the pattern itself names is meant; hidden names match only where it begins with a dot.
            matches = [path for path in matches if not {part.lower() for part in _new_parts(path, source)} & set(JUNK)]
        if not matches and Path(source).is_dir():
            raise PackError(f"{option}{source}: the folder has no file *{PACK_SUFFIX}.")
        if not matches:
            cut = (
                f" A name with a comma is put in quotes: '{option}\"a,b{PACK_SUFFIX}\"'."
                if len(sources) > 1 and option.startswith("--")
                else ""
            )
            raise PackError(
                f"{option}{source}: there is no such file or folder, and as a pattern it matches nothing.{cut}"
            )
        found += matches
    if not found:
        raise PackError(f"{option} names no pack.")
    return found


def _new_parts(path: str, pattern: str) -> set[str]:
    """Returns the names in a path that a pattern does not name."""
    return set(Path(path).parts).difference(Path(pattern).parts)


def packs_in(folder: str | os.PathLike) -> list[Path]:
    """Returns the files of packs in a folder that are no junk, sorted."""
    return sorted(path for path in Path(folder).glob(f"*{PACK_SUFFIX}") if not is_junk(path.name))
