import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest

from piggyback_tf.data import DataError, cache, disk_cache, load_data, make_dataset, prepared
from piggyback_tf.data.cache import (
    CachedImages,
    bytes_in_memory,
    cache_in_memory,
    compute_once,
    decode_all,
    default_cache_dir,
)
from piggyback_tf.data.disk_cache import cache_on_disk, open_disk_cache


def image(index: int) -> np.ndarray:
    return np.full((2 + index % 3, 4, 3), index % 256, np.uint8)


def assert_whole(images: CachedImages, count: int) -> None:
    assert len(images) == count
    assert all(np.array_equal(images.read(i), image(i)) for i in range(count))


@pytest.mark.parametrize("estimate", [1, 100, 10**6])
def test_memory(estimate):
    images = cache_in_memory(decode_all(image, 700), estimate)
    assert_whole(images, 700)
    assert images.image_size is None


def test_images_of_one_size_are_gathered():
    images = cache_in_memory(decode_all(lambda i: np.full((2, 5, 3), i, np.uint8), 9), 1000)
    assert images.image_size == (2, 5)
    assert images.gather(np.array([7, 0, 7]))[:, 0, 0, 0].tolist() == [7, 0, 7]


def test_disk(tmp_path):
    folder = tmp_path / "deep" / "images-1"
    assert open_disk_cache(folder) is None
    assert_whole(cache_on_disk(decode_all(image, 300), folder, {"images": 300}), 300)
    # The second time nothing is read.
    assert_whole(cache_on_disk(None, folder, {}), 300)
    assert json.loads((folder / "about.json").read_text()) == {"images": 300}
    assert sorted(p.name for p in folder.parent.iterdir()) == ["images-1", "images-1.lock"]


def test_decoding_keeps_the_order_and_stops_at_an_error():
    def slow_at_first(index):
        time.sleep(0.01 if index < 3 else 0)
        if index == 400:
            raise DataError("broken 400")
        return index

    seen = []
    with pytest.raises(DataError, match="broken 400"):
        for result in decode_all(slow_at_first, 10**9):
            seen.append(result)
    assert seen == list(range(400))


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fails(index):
        if index == 5:
            raise DataError("no")
        return image(index)

    with pytest.raises(DataError):
        cache_on_disk(decode_all(fails, 10), tmp_path / "images-1", {})
    assert [p.name for p in tmp_path.iterdir()] == ["images-1.lock"]


FILL = r"""
import os, sys, time, numpy as np
from pathlib import Path
from piggyback_tf.data.cache import decode_all
from piggyback_tf.data.disk_cache import cache_on_disk
def image(i):
    os.write(1, f"{i}\n".encode())
    time.sleep(float(sys.argv[2]))
    return np.full((2 + i % 3, 4, 3), i % 256, np.uint8)
cache_on_disk(decode_all(image, 60), Path(sys.argv[1]), {})
"""


def test_a_kill_leaves_no_entry_and_no_lock(tmp_path):
    folder = tmp_path / "images-1"
    process = subprocess.Popen([sys.executable, "-c", FILL, folder, "0.05"], stdout=subprocess.PIPE)
    for _ in range(5):
        process.stdout.readline()
    assert (tmp_path / "images-1.partial").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert open_disk_cache(folder) is None
    assert_whole(cache_on_disk(decode_all(image, 60), folder, {}), 60)
    assert not (tmp_path / "images-1.partial").exists()


def test_two_processes_make_one_entry(tmp_path):
    folder = tmp_path / "images-1"
    command = [sys.executable, "-c", FILL, folder, "0.01"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    read = [len(process.communicate()[0].split()) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(read) == [0, 0, 60]
    assert_whole(open_disk_cache(folder), 60)


DAMAGE = {
    "pixels are cut": lambda folder: os.truncate(folder / "pixels.bin", 50),
    "pixels are gone": lambda folder: (folder / "pixels.bin").unlink(),
    "shapes are gone": lambda folder: (folder / "shapes.npy").unlink(),
    "shapes are cut": lambda folder: os.truncate(folder / "shapes.npy", 60),
    "shapes are empty": lambda folder: os.truncate(folder / "shapes.npy", 0),
    "shapes are others": lambda folder: np.save(folder / "shapes.npy", np.zeros(3)),
    "shapes are no array": lambda folder: (folder / "shapes.npy").write_bytes(b"nonsense"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_entry_is_made_again(damage, tmp_path, caplog):
    folder = tmp_path / "images-1"
    cache_on_disk(decode_all(image, 10), folder, {})
    damage(folder)
    assert_whole(cache_on_disk(decode_all(image, 10), folder, {}), 10)
    assert f"Cache entry {folder} is damaged and is made again" in caplog.text
    assert_whole(open_disk_cache(folder), 10)


def entries(cache_dir) -> list[str]:
    return sorted(path.name for path in cache_dir.glob("images-*") if path.is_dir())


def test_auto_chooses_memory_then_disk_then_none(make_folder, cache_dir, caplog, monkeypatch):
    source = load_data(f"folder:{make_folder(train={'a': 4, 'b': 4})}").train
    arguments = {"augment": "resize(512,512)|flip", "batch_size": 2, "training": True}
    make_dataset(source, **arguments)
    assert not entries(cache_dir) and source._kept_images[1].place == "memory"
    source._kept_images = (None, None)
    make_dataset(source, cache_limit_mb=1, **arguments)
    assert len(entries(cache_dir)) == 1 and source._kept_images == (None, None)
    about = json.loads((cache_dir / entries(cache_dir)[0] / "about.json").read_text())
    assert about["operations"] == "resize(512,512)" and about["first"] == source.describe(0)

    assert "No cache" not in caplog.text
    monkeypatch.setattr(disk_cache, "_free", lambda folder: 1 << 20)
    arguments["augment"] = "resize(600,600)|flip"
    dataset = make_dataset(source, cache_limit_mb=1, **arguments)
    assert sum(len(labels) for _, labels in dataset) == len(source)
    assert "No cache for 6 images after resize(600,600), which are decoded anew in every epoch" in caplog.text
    assert "about 6.2 MiB are needed and 1.0 MiB are left of the disk and of cache_disk_limit_mb=20480" in caplog.text
    assert len(entries(cache_dir)) == 1


def test_the_limit_holds_for_all_splits_together(make_folder, cache_dir, monkeypatch):
    # Other tests' images do not count here.
    monkeypatch.setattr(cache, "_in_memory", weakref.WeakSet())
    names = {"a": 2, "b": 2}
    root = make_folder(train=names, val=names, test=names)
    data = load_data(f"folder:{root}")
    # Four images of 768 KiB a split.
    arguments = {"augment": "resize(512,512)", "batch_size": 2, "training": False, "cache_limit_mb": 7}
    train, validation, test = (make_dataset(part, **arguments) for part in (data.train, data.validation, data.test))
    assert [part._plan.images.place for part in (train, validation, test)] == ["memory", "memory", "disk"]
    assert bytes_in_memory() == 6 << 20
    assert len(entries(cache_dir)) == 1
    # What is in memory is used again and not counted twice.
    assert make_dataset(data.train, **arguments)._plan.images is train._plan.images
    # Images after other operations take the place of the old ones, once no dataset reads those.
    del train
    train = make_dataset(data.train, **{**arguments, "augment": "resize(256,1024)"})
    assert train._plan.images.place == "memory"
    assert bytes_in_memory() == 6 << 20

    # Room that was given up is used, even where it is still held by a cycle of references.
    gc.disable()
    try:
        cycle = [validation, data.validation]
        cycle.append(cycle)
        del cycle, validation, data
        assert bytes_in_memory() == 6 << 20
        again = make_dataset(load_data(f"folder:{root}").test, **arguments)
    finally:
        gc.enable()
    assert again._plan.images.place == "memory"
    assert bytes_in_memory() == 6 << 20


def test_cache_dir_argument_and_disk_errors(make_folder, tmp_path, cache_dir, caplog):
    source = load_data(f"folder:{make_folder(train={'a': 4, 'b': 4})}").train
    arguments = {"augment": "resize(8,8)", "batch_size": 2, "training": True}
    make_dataset(source, cache="disk", cache_dir=str(tmp_path / "mine"), **arguments)
    assert len(entries(tmp_path / "mine")) == 1 and not entries(cache_dir)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="Cannot cache 6 images after resize.* in '.*file/images-"):
        make_dataset(source, cache="disk", cache_dir=str(tmp_path / "file"), **arguments)
    make_dataset(source, cache_limit_mb=0, cache_dir=str(tmp_path / "file"), **arguments)
    assert "No cache for 6 images" in caplog.text


def test_the_key_covers_files_split_operations_and_how_files_are_decoded(make_folder, cache_dir, monkeypatch):
    root = make_folder(train={"a": 4, "b": 4})

    def fill(augment="resize(8,8)", seed=0):
        source = load_data(f"folder:{root}", seed=seed).train
        make_dataset(source, augment, batch_size=2, training=True, cache="disk")
        return len(entries(cache_dir))

    assert fill() == 1 and fill() == 1
    assert fill("resize(8,8)|flip") == 1
    assert fill("resize(9,9)") == 2
    assert fill(seed=1) == 3
    os.utime(root / "train/a/000.png", ns=(1, 1))
    os.utime(root / "train/a/001.png", ns=(1, 1))
    assert fill() == 4
    monkeypatch.setattr(prepared, "PIXELS_VERSION", "1")
    assert fill() == 5


def test_room_on_disk_keeps_a_reserve(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": disk_cache.DISK_RESERVE + 5, "total": 2 * disk_cache.DISK_RESERVE})
    monkeypatch.setattr(disk_cache.shutil, "disk_usage", lambda folder: usage)
    assert disk_cache.make_room(tmp_path / "not" / "yet", 5, None) == 5
    usage.total = 40 * disk_cache.DISK_RESERVE
    assert disk_cache.make_room(tmp_path, 5, None) == 0


def test_default_cache_dir(monkeypatch, tmp_path):
    assert default_cache_dir() == tmp_path / "piggyback_cache"
    monkeypatch.delenv("PIGGYBACK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(default_cache_dir()) == "/x/piggyback_tf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(default_cache_dir()) == "/home/me/.cache/piggyback_tf"


def test_remember(tmp_path, caplog):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3)}

    for _ in range(2):
        assert compute_once("x", "f" * 64, compute, tmp_path / "new")["a"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    compute_once("x", "e" * 64, compute, tmp_path / "new")
    assert len(calls) == 2
    (tmp_path / "file").write_text("x")
    assert compute_once("x", "f" * 64, compute, tmp_path / "file")["a"].tolist() == [0, 1, 2]
    assert "cannot be kept" in caplog.text


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_a_damaged_result_is_computed_again(size, tmp_path, caplog):
    def compute():
        return {"a": np.arange(100)}

    compute_once("x", "f" * 64, compute, tmp_path)
    (path,) = tmp_path.glob("x-*.npz")
    os.truncate(path, size)
    for _ in range(2):
        assert compute_once("x", "f" * 64, compute, tmp_path)["a"].tolist() == list(range(100))
    assert caplog.text.count("cannot be read and is made again") == 1


def test_available_cpus():
    assert 1 <= cache.available_cpus() <= multiprocessing.cpu_count()
