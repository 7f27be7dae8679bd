"""Memory for the tensors of tasks, which come and go: what is dropped goes back to the system, but for one piece."""

import collections
import contextlib
import ctypes
import mmap
import weakref
from typing import Any

import numpy as np

# Less than this comes from the allocator.
_LEAST = 1 << 20


class SpareMemory:
    """Gives memory, and keeps the piece that came free last for whoever asks next; threads may share it.

    Taken from the allocator, memory would not be what the tensors need: of pieces below 32 MiB, glibc keeps what was
    freed for each thread apart, and eight threads that used a cache for three tasks of 9.5 MB were left with fourteen.
    A piece that was in use before is written 1.4 to 2 times as fast as a new one, of which the system clears each page
    when it is touched first.
    """

    def __init__(self) -> None:
        # Only `append` and `pop`, which need no lock: a piece may come free at any time, within `take` too.
        self._spare: collections.deque[mmap.mmap] = collections.deque(maxlen=1)

    def take(self, size: int) -> np.ndarray:
        """Returns memory, uint8 `[size]`, with anything in it; it is free when no array or tensor over it is left."""
        if size < _LEAST:
            return np.empty(size, np.uint8)
        pages = self._pages(size)
        # Not the array itself is watched: arrays that are made of it refer to this, and not to it.
        owner: Any = (ctypes.c_uint8 * size).from_buffer(pages)
        weakref.finalize(owner, self._spare.append, pages).atexit = False
        return np.frombuffer(owner, np.uint8)

    def _pages(self, size: int) -> mmap.mmap:
        # None is spare; it is not let go of yet; or this system cannot resize it.
        with contextlib.suppress(IndexError, BufferError, OSError, SystemError):
            pages = self._spare.pop()
            if len(pages) != size:
                pages.resize(size)
            return pages
        pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # As NumPy does, for speed; not every system has huge pages.
        with contextlib.suppress(AttributeError, OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)
        return pages
