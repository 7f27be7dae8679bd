"""What is worth keeping: decoded images, and small results of long scans. `disk_cache.py` keeps images on disk."""

import contextlib
import dataclasses
import io
import os
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from absl import logging

from piggyback_tf.files import local_path, make_folder, write_atomically

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
        PathError: If it is empty, or a URL.
    """
    return default_cache_dir() if cache_dir is None else local_path(cache_dir, "--cache_dir=")


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
        channels: Of every image: 3, or 4 with its label map.
    """

    pixels: np.ndarray
    shapes: np.ndarray
    place: str
    channels: int = 3
    # Where each image ends in `pixels`.
    _ends: np.ndarray = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        sizes = self.shapes.astype(np.int64).prod(axis=1) * self.channels
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
        """Returns one image as a uint8 array of shape `(height, width, channels)`."""
        height, width = (int(n) for n in self.shapes[index])
        end = int(self._ends[index])
        # A copy, as TensorFlow may take over the memory of what it is given and write into it.
        shape = height, width, self.channels
        return np.array(self.pixels[end - height * width * self.channels : end]).reshape(shape)

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Returns several images of one size as a uint8 array of shape `(k, height, width, channels)`."""
        shape = len(self), *self.image_size, self.channels
        return np.take(self.pixels[: int(self._ends[-1])].reshape(shape), indices, axis=0)


def decode_all(read: Callable[[int], Any], count: int) -> Iterator[Any]:
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


def cache_in_memory(images: Iterable[np.ndarray], estimate: int, channels: int = 3) -> CachedImages:
    """Takes images into memory.

    Args:
        images: The images, uint8 of shape `(height, width, channels)`.
        estimate: About how many bytes they take; exact if they all have one size.
        channels: Of every image.

    Returns:
        The images.
    """
    pixels, end, shapes = np.empty(estimate, dtype=np.uint8), 0, []
    for image in images:
        if end + image.size > len(pixels):
            grown = np.empty(max(end + image.size, len(pixels) * 9 // 8), dtype=np.uint8)
            grown[:end] = pixels[:end]
            pixels = grown
        pixels[end : end + image.size] = image.reshape(-1)
        end += image.size
        shapes.append(image.shape[:2])
    return CachedImages(pixels, np.array(shapes, dtype=np.int32), "memory", channels)


def compute_once(
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
    arrays = read_kept(kind, fingerprint, cache_dir)
    if arrays is None:
        arrays = compute()
        write_kept(kind, fingerprint, arrays, cache_dir)
    return arrays


def read_kept(kind: str, fingerprint: str, cache_dir: str | os.PathLike | None) -> dict[str, np.ndarray] | None:
    """Returns arrays that were kept, `None` if there are none, or what is there is damaged; see `compute_once`."""
    path = _result_path(kind, fingerprint, cache_dir)
    try:
        # NumPy leaves open what it opened itself, if it is damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = dict(arrays)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        logging.warning("%s cannot be read and is made again: %s", path, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # What is not used for long is removed some day.
    return found


def write_kept(kind: str, fingerprint: str, arrays: dict[str, np.ndarray], cache_dir: str | os.PathLike | None) -> None:
    """Writes arrays by name into the cache folder; see `compute_once`."""
    path = _result_path(kind, fingerprint, cache_dir)
    buffer, named = io.BytesIO(), cast(dict[str, Any], arrays)
    np.savez_compressed(buffer, **named)
    try:
        make_folder(path.parent)
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        logging.warning("%s cannot be kept and will be computed again next time: %s", path, error)


def _result_path(kind: str, fingerprint: str, cache_dir: str | os.PathLike | None) -> Path:
    return cache_folder(cache_dir) / f"{kind}-{fingerprint[:32]}.npz"
