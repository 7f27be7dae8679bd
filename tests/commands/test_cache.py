"""cache: what is kept on disk is listed and removed."""

import json
import os
import time

import numpy as np
import pytest

from piggyback_tf.__main__ import main
from piggyback_tf.data.cache import write_kept
from piggyback_tf.data.disk_cache import cache_on_disk, open_disk_cache
from tests.run_command import run_command


@pytest.fixture(name="entries")
def _entries(tmp_path, monkeypatch):
    """Two entries, of 12 and of 600 bytes of pixels, of which the second was not used for ten days."""
    monkeypatch.setenv("PIGGYBACK_CACHE", str(tmp_path))
    found = []
    for number, side in enumerate((2, 10)):
        about = {"images": number + 1, "operations": f"resize({side})", "first": f"/photos/{side}.jpg"}
        entry = tmp_path / f"images-{number:032x}"
        cache_on_disk([np.zeros((side, side, 3), np.uint8)] * (number + 1), entry, about)
        found.append(entry)
    os.utime(found[1], (time.time() - 10 * 86400,) * 2)
    write_kept("looked", "a" * 64, {"x": np.arange(3)}, tmp_path)
    return found


def test_what_is_kept_is_listed(entries, tmp_path, capsys):
    assert main(["cache"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-3:] for line in lines[2:4]] == [
        ["2", "resize(10)", "/photos/10.jpg"],
        ["1", "resize(2)", "/photos/2.jpg"],
    ]
    assert lines[-1].startswith(f"2 sets of decoded images and 1 small results in {tmp_path}: ")
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(entry["path"], entry["images"], entry["first"]) for entry in listed] == [
        (str(entries[1]), 2, "/photos/10.jpg"),
        (str(entries[0]), 1, "/photos/2.jpg"),
    ]
    assert listed[0]["bytes"] == sum(file.stat().st_size for file in entries[1].iterdir())
    assert main(["cache", f"--cache_dir={tmp_path / 'none'}"]) == 0
    assert capsys.readouterr().out.startswith("0 sets of decoded images and 0 small results")


def test_what_was_not_used_is_cleared_and_then_all(entries, tmp_path, capsys):
    assert main(["cache", "--clear", "--unused_days=5"]) == 0
    assert capsys.readouterr().out.startswith("Removed 1 sets of images and 0 small results")
    assert entries[0].exists() and not entries[1].exists()
    images = open_disk_cache(entries[0])
    assert main(["cache", "--clear"]) == 0
    assert f"1 are in use by other processes and stay: {entries[0].name}." in capsys.readouterr().out
    assert (images.pixels == 0).all()
    del images
    assert main(["cache", "--clear"]) == 0
    assert not list(tmp_path.iterdir())


def test_it_needs_no_tensorflow_and_refuses_what_goes_with_clear(entries, tmp_path):
    status, lines, _, loaded = run_command("cache", PIGGYBACK_CACHE=str(tmp_path))
    assert status == 0 and not loaded and len(lines) == 5
    status, _, error, _ = run_command("cache", "--unused_days=3", PIGGYBACK_CACHE=str(tmp_path))
    assert status == 2 and "--unused_days goes with --clear." in error
    status, _, error, _ = run_command("cache", "--clear", "--unused_days=-1", PIGGYBACK_CACHE=str(tmp_path))
    assert status == 2 and "0 or more" in error
