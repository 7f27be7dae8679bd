"""What is worth keeping: decoded images in memory or on disk, and small results of long scans.

A disk entry is a folder that appears under its name complete or not at all, and is written under a
lock, so that neither a kill nor a second process can leave a part of one to be read.
"""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from absl import logging

from piggyback_tf.files import local_path, make_folder, write_atomically

# Left free on the disk whatever is cached there.
DISK_RESERVE = 1 << 30
# Images are decoded in chunks of this many, so that a slow disk cannot pile them up in memory.
CHUNK = 256
# All images that this process has in memory, as long as anything uses them. The lock keeps a count in one thread from
# meeting an addition in another.
_in_memory: "weakref.WeakSet[CachedImages]" = weakref.WeakSet()
_in_memory_lock = threading.Lock()


def default_cache_dir() -> Path:
    """Returns the user's cache folder: `$PIGGYBACK_CACHE`, or `piggyback_tf` in `$XDG_CACHE_HOME` or `~/.cache`."""
    if folder := os.environ.get("PIGGYBACK_CACHE"):
        return local_path(folder, "PIGGYBACK_CACHE=")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "piggyback_tf"


def cache_folder(cache_dir: str | os.PathLike | None) -> Path:
    """Returns the cache folder that somebody gave, the user's if none.

    Raises:
        PathError: If it is a URL.
    """
    return local_path(cache_dir, "--cache_dir=") if cache_dir else default_cache_dir()


def available_cpus() -> int:
    """Returns how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Without equality, which arrays do not have, so that there can be a set of them.
@dataclasses.dataclass(frozen=True, eq=False)
class CachedImages:
    """Images one behind the other in one array, in memory or mapped from a file.

    Attributes:
        pixels: A flat uint8 array.
        shapes: `(height, width)` of every image, int32 of shape `(n, 2)`.
        place: `"memory"` or `"disk"`.
    """

    pixels: np.ndarray
    shapes: np.ndarray
    place: str

    def __post_init__(self):
        sizes = self.shapes.astype(np.int64).prod(axis=1) * 3
        object.__setattr__(self, "_ends", np.cumsum(sizes))
        if self.place == "memory":
            with _in_memory_lock:
                _in_memory.add(self)

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """`(height, width)` if all images have the same, otherwise `None`."""
        if (self.shapes != self.shapes[0]).any():
            return None
        return int(self.shapes[0, 0]), int(self.shapes[0, 1])

    def read(self, index: int) -> np.ndarray:
        """Returns one image as a uint8 array of shape `(height, width, 3)`."""
        height, width = (int(n) for n in self.shapes[index])
        end = int(self._ends[index])
        # A copy, as TensorFlow may take over the memory of what it is given and write into it.
        return np.array(self.pixels[end - height * width * 3 : end]).reshape(height, width, 3)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Returns several images of one size as a uint8 array of shape `(k, height, width, 3)`."""
        height, width = self.image_size
        return np.take(self.pixels[: int(self._ends[-1])].reshape(len(self), height, width, 3), indices, axis=0)


def decode_all(read: Callable[[int], np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Yields `read(0)`, ..., `read(count - 1)` in this order, computed by a pool of threads."""
    with ThreadPoolExecutor(available_cpus() + 2) as pool:
        try:
            for start in range(0, count, CHUNK):
                yield from pool.map(read, range(start, min(start + CHUNK, count)))
        finally:
            pool.shutdown(cancel_futures=True)


def bytes_in_memory() -> int:
    """Returns how many bytes the images take that this process has in memory, those of all sources together."""
    with _in_memory_lock:
        return sum(images.pixels.nbytes for images in _in_memory)


def cache_in_memory(read: Callable[[int], np.ndarray], count: int, estimate: int) -> CachedImages:
    """Reads all images into memory.

    Args:
        read: Returns an image, uint8 of shape `(height, width, 3)`, by its index.
        count: How many there are.
        estimate: About how many bytes they take; exact if they all have one size.

    Returns:
        The images.
    """
    pixels, end, shapes = np.empty(estimate, dtype=np.uint8), 0, []
    for image in decode_all(read, count):
        if end + image.size > len(pixels):
            grown = np.empty(max(end + image.size, len(pixels) * 9 // 8), dtype=np.uint8)
            grown[:end] = pixels[:end]
            pixels = grown
        pixels[end : end + image.size] = image.reshape(-1)
        end += image.size
        shapes.append(image.shape[:2])
    return CachedImages(pixels, np.array(shapes, dtype=np.int32), "memory")


def open_disk_cache(folder: Path) -> CachedImages | None:
    """Returns the images of a disk entry, or `None` if there is no such entry."""
    if not folder.is_dir():
        return None
    shapes = np.load(folder / "shapes.npy", allow_pickle=False)
    size = int(shapes.astype(np.int64).prod(axis=1).sum()) * 3
    if (folder / "pixels.bin").stat().st_size != size:
        logging.warning("Cache entry %s was damaged by another program; it is made again.", folder)
        return None
    return CachedImages(np.memmap(folder / "pixels.bin", dtype=np.uint8, mode="r"), shapes, "disk")


def cache_on_disk(read: Callable[[int], np.ndarray], count: int, folder: Path, about: dict) -> CachedImages:
    """Returns the images of a disk entry, which is made if there is none.

    Args:
        read: Returns an image by its index.
        count: How many there are.
        folder: The entry. Its name must stand for everything that the pixels depend on.
        about: What is in the entry, for a person who finds the folder.

    Returns:
        The images, mapped from the file.

    Raises:
        OSError: If the folder cannot be written to or the disk is full; no part of an entry is left then.
    """
    make_folder(folder.parent)
    with _locked(folder.with_name(folder.name + ".lock")):
        if images := open_disk_cache(folder):
            return images
        # Under the lock nobody else writes here: what lies around is the rest of a killed process.
        partial = folder.with_name(folder.name + ".partial")
        for leftover in (partial, folder):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        try:
            shapes = []
            with (partial / "pixels.bin").open("wb") as stream:
                for image in decode_all(read, count):
                    stream.write(np.ascontiguousarray(image).data)
                    shapes.append(image.shape[:2])
                stream.flush()
                os.fsync(stream.fileno())
            buffer = io.BytesIO()
            np.save(buffer, np.array(shapes, dtype=np.int32))
            write_atomically(partial / "shapes.npy", buffer.getvalue())
            write_atomically(partial / "about.json", json.dumps(about, indent=2))
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return open_disk_cache(folder)


def room_on_disk(folder: Path) -> int:
    """Returns how many bytes may be cached in a folder, which need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free - DISK_RESERVE


def remember(
    kind: str, fingerprint: str, compute: Callable[[], dict[str, np.ndarray]], cache_dir: str | os.PathLike | None
) -> dict[str, np.ndarray]:
    """Returns what `compute` returns, from the cache folder if it was computed before.

    Args:
        kind: What it is, part of the file's name.
        fingerprint: A hexadecimal digest of everything that the result depends on.
        compute: Returns arrays by name.
        cache_dir: The cache folder; `None` for the user's.

    Returns:
        The arrays. A folder that cannot be written to is logged, and costs only the time to compute again.
    """
    folder = cache_folder(cache_dir)
    path = folder / f"{kind}-{fingerprint[:32]}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    arrays = compute()
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    try:
        make_folder(folder)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        logging.warning("%s cannot be kept and will be computed again next time: %s", path, error)
    return arrays


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    # The system takes the lock back when its holder dies, however it dies.
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield
