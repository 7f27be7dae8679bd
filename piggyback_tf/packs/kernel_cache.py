"""A cache of the tensors that a task's bits were unpacked to: the least recently used go first."""

import collections
import threading
from typing import Generic, Protocol, TypeVar

from piggyback_tf.settings.records import check_integer


class _Sized(Protocol):
    @property
    def nbytes(self) -> int:
        """Bytes in memory."""


Key = TypeVar("Key")
Value = TypeVar("Value", bound=_Sized)


class KernelCache(Generic[Key, Value]):
    """Keeps values up to a number of bytes; threads may share it.

    The limit holds at all times for what the cache keeps. A value that is in use stays in memory while it is used,
    whether the cache keeps it or not.

    Args:
        limit: Bytes; 0 keeps nothing.

    Raises:
        ValueError: If the limit is no integer of at least 0.
    """

    def __init__(self, limit: int):
        check_integer("cache_bytes", limit, 0)
        self.limit = limit
        self._entries: collections.OrderedDict[Key, Value] = collections.OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the values that are kept now."""
        return self._nbytes

    def get(self, key: Key) -> Value | None:
        """Returns the value of a key, which becomes the most recently used one, or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        """Keeps a value if the limit allows that, at the cost of the least recently used others."""
        # Held until the lock is free: giving back the memory of a large network takes milliseconds.
        dropped = []
        with self._lock:
            dropped.append(self._pop(key))
            room = self.limit - value.nbytes
            while room >= 0 and self._nbytes > room:
                dropped.append(self._pop(next(iter(self._entries))))
            if room >= 0:
                self._entries[key] = value
                self._nbytes += value.nbytes

    def discard(self, key: Key) -> None:
        """Forgets a key, if it is there."""
        with self._lock:
            dropped = self._pop(key)
        del dropped

    def _pop(self, key: Key) -> Value | None:
        value = self._entries.pop(key, None)
        if value is not None:
            self._nbytes -= value.nbytes
        return value
