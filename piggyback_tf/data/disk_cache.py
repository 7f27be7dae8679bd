"""Decoded images on disk: one entry for each source and what was done to its images, up to a limit for all.

An entry is a folder that appears under its name complete or not at all, and is written under a lock, so that neither a
kill nor a second process can leave a part of one to be read. One that is not what was written is made again. Where room
is needed, entries that were not used for longest are removed, but none that a process has open.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from piggyback_tf.data.cache import CachedImages
from piggyback_tf.files import make_folder, write_atomically

# Left free on the disk whatever is cached there: so many bytes, and such a part of the whole disk.
DISK_RESERVE, DISK_RESERVE_PART = 1 << 30, 0.05
# Small results that were not used for so many days go when room is made.
RESULT_DAYS = 90
_PIXELS, _SHAPES, _ABOUT = "pixels.bin", "shapes.npy", "about.json"
# Nothing else in the folder is ours.
_ENTRY = re.compile(r"images-[0-9a-f]{32}")
_RESULT = re.compile(r"[a-z]+-[0-9a-f]{32}\.npz")


@dataclasses.dataclass(frozen=True)
class CacheEntry:
    """An entry of the cache.

    Attributes:
        path: Its folder, or, of a small result, its file.
        size: Bytes that it takes.
        used: When it was last used, in seconds since 1970.
        about: What its writer said of it.
    """

    path: Path
    size: int
    used: float
    about: dict[str, Any]


def open_disk_cache(folder: Path, channels: int = 3) -> CachedImages | None:
    """Returns the images of an entry; `None` if there is no such entry, or it is not as it was written.

    As long as anything uses the images, the entry counts as in use, by any process.

    Args:
        folder: The entry.
        channels: Of every image.
    """
    try:
        stream = (folder / _PIXELS).open("rb")
    except OSError as error:
        if not isinstance(error, FileNotFoundError) or folder.is_dir():
            logging.warning("Cache entry %s is damaged and is made again: %s", folder, error)
        return None
    try:
        with contextlib.suppress(OSError):  # Where files cannot be locked, entries are not removed either.
            fcntl.flock(stream, fcntl.LOCK_SH)
        shapes = np.load(folder / _SHAPES, allow_pickle=False)
        size = int(shapes.astype(np.int64).prod(axis=1).sum()) * channels
        if shapes.ndim != 2 or not len(shapes) or os.fstat(stream.fileno()).st_size != size:
            raise ValueError(f"{_PIXELS} and {_SHAPES} do not go together")
        images = CachedImages(np.memmap(stream, dtype=np.uint8, mode="r"), shapes, "disk", channels)
    except (OSError, ValueError, EOFError) as error:
        logging.warning("Cache entry %s is damaged and is made again: %s", folder, error)
        stream.close()
        return None
    weakref.finalize(images, stream.close)
    with contextlib.suppress(OSError):
        os.utime(folder)
    return images


def cache_on_disk(
    images: Iterable[np.ndarray],
    folder: Path,
    about: dict[str, Any],
    *,
    channels: int = 3,
    final: Callable[[], Path] | None = None,
    most: int | None = None,
) -> CachedImages:
    """Returns the images of an entry, which is made if there is none.

    Args:
        images: The images; gone through only if there is no entry.
        folder: The entry. Its name must stand for everything that the pixels depend on.
        about: What is in the entry, for a person who finds the folder.
        channels: Of every image.
        final: Returns the entry's name where that is known only when all images were gone through; by default `folder`.
        most: Bytes that the entry may take; None for any number.

    Returns:
        The images, mapped from the file.

    Raises:
        OSError: If the folder cannot be written to, the disk is full, or the entry would take more than `most`; no part
            of an entry is left then.
    """
    make_folder(folder.parent)
    with _locked(_lock_of(folder)):
        if (found := open_disk_cache(folder, channels)) is not None:
            return found
        # Under the lock nobody else writes here: what lies around is the rest of a killed process.
        partial = _partial_of(folder)
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            shapes, size = [], 0
            with (partial / _PIXELS).open("wb") as stream:
                for image in images:
                    size += image.size
                    if most is not None and size > most:
                        raise OSError(f"they take more than the {most / 2**20:.1f} MiB that there is room for")
                    stream.write(np.ascontiguousarray(image).data)
                    shapes.append(image.shape[:2])
                stream.flush()
                os.fsync(stream.fileno())
            buffer = io.BytesIO()
            np.save(buffer, np.array(shapes, dtype=np.int32))
            write_atomically(partial / _SHAPES, buffer.getvalue())
            write_atomically(partial / _ABOUT, json.dumps(about, indent=2))
            folder = final() if final else folder
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if (made := open_disk_cache(folder, channels)) is None:
            raise OSError(f"what was written to {str(folder)!r} cannot be read again")
        return made


def make_room(cache_dir: Path, size: int, limit: int | None) -> int:
    """Removes entries, those that were not used for longest first, until as many bytes fit, as far as that is possible.

    Args:
        cache_dir: The cache folder, which need not exist yet.
        size: Bytes that are needed.
        limit: Bytes that all entries may take together; None for any number.

    Returns:
        How many bytes there is room for: below the limit, with a part of the disk left free.
    """
    remove_cache_leftovers(cache_dir)
    for result in list_results(cache_dir):
        if time.time() - result.used > RESULT_DAYS * 86400:
            result.path.unlink(missing_ok=True)
    entries = list_entries(cache_dir)
    kept = sum(entry.size for entry in entries)

    def room() -> int:
        return min(_free(cache_dir), limit - kept if limit is not None else 1 << 62)

    # Nothing is gained where even an empty cache would have no room.
    if size <= min(_free(cache_dir) + kept, limit if limit is not None else size):
        for entry in sorted(entries, key=lambda entry: entry.used):
            if room() >= size:
                break
            if remove_entry(entry.path):
                logging.info("Removed %s of %.1f MiB from the cache, which was full.", entry.path, entry.size / 2**20)
                kept -= entry.size
    return max(room(), 0)


def list_entries(cache_dir: Path) -> list[CacheEntry]:
    """Returns the entries of images, largest first."""
    entries = []
    for path in _named(cache_dir, _ENTRY):
        with contextlib.suppress(OSError):
            size = sum(file.stat().st_size for file in path.iterdir())
            entries.append(CacheEntry(path, size, path.stat().st_mtime, _read_about(path)))
    return sorted(entries, key=lambda entry: -entry.size)


def list_results(cache_dir: Path) -> list[CacheEntry]:
    """Returns the files that keep results of scans."""
    results = []
    for path in _named(cache_dir, _RESULT):
        with contextlib.suppress(OSError):
            status = path.stat()
            results.append(CacheEntry(path, status.st_size, status.st_mtime, {}))
    return results


def remove_entry(folder: Path) -> bool:
    """Removes an entry that no process uses or writes; returns whether it is gone."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_locked(_lock_of(folder), wait=False, remove=True))
            with contextlib.suppress(FileNotFoundError):
                pixels = stack.enter_context((folder / _PIXELS).open("r+b"))
                fcntl.flock(pixels, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        shutil.rmtree(_partial_of(folder), ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()


def remove_cache_leftovers(cache_dir: Path) -> int:
    """Removes what killed processes left of entries; returns how many bytes that were."""
    size = 0
    for path in cache_dir.glob("images-*.partial") if cache_dir.is_dir() else ():
        entry = path.with_suffix("")
        if _ENTRY.fullmatch(entry.name):
            own = sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            with contextlib.suppress(BlockingIOError), _locked(_lock_of(entry), wait=False, remove=not entry.exists()):
                shutil.rmtree(path, ignore_errors=True)
                size += own
    return size


def _named(cache_dir: Path, pattern: re.Pattern) -> list[Path]:
    return [path for path in cache_dir.iterdir() if pattern.fullmatch(path.name)] if cache_dir.is_dir() else []


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _free(folder: Path) -> int:
    """Returns how many bytes may be written to the disk of a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return usage.free - max(DISK_RESERVE, int(DISK_RESERVE_PART * usage.total))


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def _partial_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True, remove: bool = False) -> Iterator[None]:
    """Holds a lock file while the block runs; the system takes it back when its holder dies, however it dies.

    Args:
        path: The file.
        wait: Whether to wait for another holder, or to raise `BlockingIOError`.
        remove: Whether the file is removed at the end.
    """
    while True:
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Its last holder may have removed the file; whoever comes next would then lock another one.
            try:
                current = os.path.samestat(os.fstat(stream.fileno()), path.stat())
            except FileNotFoundError:
                current = False
            if current:
                yield
                if remove:
                    path.unlink(missing_ok=True)
                return
