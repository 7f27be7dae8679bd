"""A bar on a terminal; where there is none, nothing."""

import logging
import sys
import time

from absl import logging as absl_logging

_WIDTH = 30
# Seconds between two drawings.
_PAUSE = 0.1


class ProgressBar:
    """Shows on stderr how far something is that takes its time; to be used in a `with` block.

    Args:
        what: What is counted, such as `"images looked at"`.
    """

    def __init__(self, what: str):
        self._what = what
        self._shown = sys.stderr.isatty()
        self._drawn, self._length = -1.0, 0
        self._started = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Draws the bar, unless that was just done."""
        now = time.monotonic()
        if not self._shown or (now - self._drawn < _PAUSE and done < total):
            return
        self._drawn = now
        filled = _WIDTH * done // max(total, 1)
        text = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {done:,} of {total:,} {self._what}"
        if 0 < done < total and now - self._started > 1:
            text += f", {(total - done) * (now - self._started) / done:.0f} s left"
        print(f"\r{text.ljust(self._length)}", end="", file=sys.stderr, flush=True)
        self._length = len(text)

    def __enter__(self) -> "ProgressBar":
        absl_logging.get_absl_logger().addFilter(self._make_way)
        return self

    def __exit__(self, *exception: object) -> None:
        absl_logging.get_absl_logger().removeFilter(self._make_way)
        self._erase()

    def _make_way(self, record: logging.LogRecord) -> bool:
        """Takes the bar away before something is logged, which would stand behind it; it is drawn again below."""
        del record
        self._erase()
        return True

    def _erase(self) -> None:
        if self._length:
            print(f"\r{' ' * self._length}\r", end="", file=sys.stderr, flush=True)
        self._length, self._drawn = 0, -1.0
