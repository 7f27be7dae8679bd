"""The bar on a terminal, and nothing where there is none."""

import io

import pytest
from absl import logging

from piggyback_tf.commands import progress
from piggyback_tf.commands.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(name="clock")
def _clock(monkeypatch):
    """A clock that a test sets."""
    clock = type("Clock", (), {"now": 100.0})()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock.now)
    return clock


def screen(text: str) -> str:
    """Returns what stands on the last line of a terminal."""
    line = ""
    for part in text.rsplit("\n")[-1].split("\r"):
        line = part + line[len(part) :]
    return line.rstrip()


def log() -> bool:
    """Does with a record what the package's logger does before any handler writes it."""
    logger = logging.get_absl_logger()
    return bool(logger.filter(logger.makeRecord("absl", logging.WARNING, "", 0, "something", (), None)))


def test_a_bar_grows_and_goes(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ProgressBar("images looked at") as bar:
        for done in range(1, 1001):
            clock.now += 0.01
            bar(done, 2000)
        assert screen(terminal.getvalue()).startswith(
            "[" + "#" * 14 + "." * 16 + "] 991 of 2,000 images looked at, 10 s"
        )
        # Drawn ten times a second, not each time.
        assert 90 < terminal.getvalue().count("\r") < 110
    assert screen(terminal.getvalue()) == ""


def test_what_is_logged_does_not_stand_behind_the_bar(monkeypatch, clock):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with ProgressBar("images") as bar:
        bar(1, 3)
        assert screen(terminal.getvalue()) == "[" + "#" * 10 + "." * 20 + "] 1 of 3 images"
        assert log()
        assert screen(terminal.getvalue()) == ""
        bar(2, 3)
        assert screen(terminal.getvalue()).endswith("2 of 3 images")
    print("[###] of somebody else", end="", file=terminal)
    assert log() and screen(terminal.getvalue()) == "[###] of somebody else"


def test_without_a_terminal_there_is_nothing(capsys):
    with ProgressBar("images") as bar:
        bar(1, 2)
    assert capsys.readouterr().err == ""
