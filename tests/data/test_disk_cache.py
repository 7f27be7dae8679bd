"""The limit of what is cached on disk, and what goes when it is reached."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from piggyback_tf.data import Part, check_images, disk_cache, load_data, make_dataset, stream_batches
from piggyback_tf.data.cache import write_kept
from piggyback_tf.data.disk_cache import (
    cache_on_disk,
    list_entries,
    make_room,
    open_disk_cache,
    remove_cache_leftovers,
    remove_entry,
)
from piggyback_tf.settings import InputConfig

ROOM = {"batch_size": 2, "training": True, "cache": "auto", "cache_limit_mb": 0}


def name(number: int) -> str:
    return f"images-{number:032x}"


def fill(folder, number, size=1 << 20):
    """Makes an entry of some bytes that was used so many minutes after the others as its number says."""
    entry = folder / name(number)
    cache_on_disk([np.full((1, size // 3, 3), number, np.uint8)], entry, {"images": 1})
    os.utime(entry, (1e9 + 60 * number,) * 2)
    return entry


def kept(folder):
    return sorted(int(entry.path.name[-3:], 16) for entry in list_entries(folder))


def test_what_was_not_used_for_longest_makes_room(tmp_path):
    for number in (3, 1, 2, 4):
        fill(tmp_path, number)
    open_disk_cache(tmp_path / name(1))  # Which is then used last.
    size = list_entries(tmp_path)[0].size
    assert make_room(tmp_path, size, 5 * size) == size and kept(tmp_path) == [1, 2, 3, 4]
    assert make_room(tmp_path, 2 * size, 4 * size) == 2 * size and kept(tmp_path) == [1, 4]
    # What cannot fit makes nobody go.
    assert make_room(tmp_path, 9 * size, 8 * size) == 6 * size and kept(tmp_path) == [1, 4]


def test_a_full_disk_makes_room_too(tmp_path, monkeypatch):
    for number in range(4):
        fill(tmp_path, number)
    size = list_entries(tmp_path)[0].size
    monkeypatch.setattr(disk_cache, "_free", lambda folder: (4 - len(kept(folder))) * size)
    assert make_room(tmp_path, 2 * size, None) == 2 * size
    assert kept(tmp_path) == [2, 3]


def test_what_is_in_use_stays(tmp_path):
    entries = [fill(tmp_path, number) for number in range(3)]
    images = open_disk_cache(entries[0])
    code = (
        "import sys; from pathlib import Path; from piggyback_tf.data.disk_cache import open_disk_cache; "
        f"images = open_disk_cache(Path({str(entries[1])!r})); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"open\n"
    assert [remove_entry(entry) for entry in entries] == [False, False, True]
    view = images.pixels[:10]
    del images
    assert not remove_entry(entries[0]) and (view == 0).all()
    del view
    other.communicate(b"")
    assert [remove_entry(entry) for entry in entries[:2]] == [True, True]
    assert not list(tmp_path.iterdir())


def test_nothing_of_others_is_touched(tmp_path):
    fill(tmp_path, 1)
    others = ["images-mine", "images-1.partial", "photos-0123.npz", f"x{name(2)}", "notes.txt"]
    for other in others:
        (tmp_path / other).mkdir()
        (tmp_path / other / "pixels.bin").write_bytes(b"mine")
        os.utime(tmp_path / other, (1e9, 1e9))
    assert make_room(tmp_path, 1 << 19, 1 << 20) > 0 and remove_cache_leftovers(tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead, alive = (tmp_path / f"{name(number)}.partial" for number in (1, 2))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "pixels.bin").write_bytes(bytes(100))
    with disk_cache._locked(disk_cache._lock_of(tmp_path / name(2))):
        assert remove_cache_leftovers(tmp_path) == 100
    assert not dead.exists() and alive.exists()


def test_small_results_go_when_they_were_not_used_for_long(tmp_path):
    for fingerprint in ("a" * 64, "b" * 64):
        write_kept("looked", fingerprint, {"x": np.arange(3)}, tmp_path)
    old = tmp_path / f"looked-{'a' * 32}.npz"
    os.utime(old, (time.time() - 91 * 86400,) * 2)
    make_room(tmp_path, 1, 1 << 20)
    assert [path.name for path in tmp_path.iterdir()] == [f"looked-{'b' * 32}.npz"]


def test_a_lock_that_was_removed_holds_nobody(tmp_path):
    """Two processes that wait for one that removes the lock's file do not both go on."""
    entry = fill(tmp_path, 1)
    assert remove_entry(entry) and not disk_cache._lock_of(entry).exists()
    program = f"""
import sys, time
from pathlib import Path
from piggyback_tf.data.disk_cache import _locked
for _ in range(60):
    with _locked(Path({str(tmp_path / "x.lock")!r}), remove=True):
        Path({str(tmp_path / "held")!r}).mkdir()
        time.sleep(0.001)
        Path({str(tmp_path / "held")!r}).rmdir()
"""
    processes = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate()[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], errors


def test_auto_keeps_to_the_limit_and_disk_does_not(make_folder, cache_dir, caplog):
    source = load_data(f"folder:{make_folder(train={'a': 4, 'b': 4})}").train

    def cached(size, **options):
        make_dataset(source, f"resize({size},{size})", **ROOM | options)
        return sorted(json.loads((e.path / "about.json").read_text())["operations"] for e in list_entries(cache_dir))

    caplog.set_level("INFO", logger="absl")
    assert cached(400, cache_disk_limit_mb=5) == ["resize(400,400)"]
    os.utime(list_entries(cache_dir)[0].path, (1e9, 1e9))
    assert cached(300, cache_disk_limit_mb=5) == ["resize(300,300)", "resize(400,400)"]
    # 6 images of 567 KiB.
    assert cached(440, cache_disk_limit_mb=5) == ["resize(300,300)", "resize(440,440)"]
    assert re.search(r"Removed .*images-\w+ of 2.7 MiB from the cache, which was full", caplog.text)
    assert "No cache" not in caplog.text
    assert len(cached(600, cache_disk_limit_mb=5)) == 2
    assert "are left of the disk and of cache_disk_limit_mb=5" in caplog.text
    assert "resize(600,600)" in cached(600, cache_disk_limit_mb=5, cache="disk")


def test_the_parts_of_a_check_do_not_make_room_for_one_another(make_folder, cache_dir, caplog):
    data = load_data(f"folder:{make_folder(train={'a': 3, 'b': 3}, test={'a': 3, 'b': 3}, val={'a': 1, 'b': 1})}")
    parts = [Part(source, "resize(400,400)") for source in (data.train, data.test)]
    check_images(parts, "pets", cache_limit_mb=0, cache_disk_limit_mb=4)
    (entry,) = list_entries(cache_dir)
    assert entry.about["first"] == data.train.describe(0)
    assert "No cache for 6 images after resize(400,400)" in caplog.text


def test_auto_stops_where_images_take_more_than_was_estimated(make_folder, cache_dir, caplog, monkeypatch):
    source = load_data(f"folder:{make_folder(height=300, width=300, train={'a': 4, 'b': 4})}").train
    monkeypatch.setattr("piggyback_tf.data.prepared._estimate", lambda reader, count: 1000)
    dataset = make_dataset(source, "flip", **ROOM, cache_disk_limit_mb=1)
    assert "they take more than the 1.0 MiB that there is room for" in caplog.text
    assert not list_entries(cache_dir) and not list(cache_dir.glob("*.partial"))
    assert sum(len(labels) for _, labels in dataset) == 6


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_what_is_cached_is_used_and_nothing_else_is_cached(cache, make_folder, cache_dir, monkeypatch):
    source = load_data(f"folder:{make_folder(train={'a': 4, 'b': 4})}").train
    make_dataset(source, "resize(8,8)|flip", batch_size=2, training=True, cache=cache)
    before = kept_files(cache_dir)

    def images(size):
        batches = stream_batches(
            source, f"resize({size},{size})", batch_size=4, **InputConfig(cache=cache).existing_cache()
        )
        return sum(len(labels) for _, labels in batches)

    with monkeypatch.context() as patch:
        patch.setattr(source, "read", None)
        assert images(8) == len(source)
    assert images(9) == len(source)
    assert kept_files(cache_dir) == before
    assert source._kept_images[0] == ("resize(8,8)" if cache == "memory" else None)
    # Nothing at all happens before the first batch is asked for.
    stream_batches(None, "resize(8,8)", batch_size=4)
    assert InputConfig(cache="none").existing_cache()["cache"] == "none"


def kept_files(cache_dir):
    return sorted(path.name for path in cache_dir.iterdir() if not path.name.startswith("looked"))
