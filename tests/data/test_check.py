"""Looking at all images before a training: what is found, how often images are decoded, what is remembered."""

import io
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import DataError, DataProblems, Part, check_images, folder, load_data, make_dataset
from piggyback_tf.data.look import WithoutBroken
from piggyback_tf.data.unusable_files import KINDS

SPLITS = {split: {"cat": 4, "dog": 4} for split in ("train", "val", "test")}
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
SIZE = "resize(8,8)"


def _floats() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def break_images(root: Path) -> dict[str, set[str]]:
    """Puts every kind of problem into some split; returns the paths by kind."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = root / "train/cat/whole.jpg"
    Image.fromarray(noise).save(whole)
    contents = {
        "empty": {"train/cat/000.png": b"", "test/dog/000.png": b""},
        "no_image": {"val/cat/001.png": b"<html>not found</html>"},
        "damaged": {"test/dog/cut.jpg": whole.read_bytes()[:900]},
        "no_range": {"train/cat/float.tif": _floats(), "test/dog/float.tif": _floats()},
        "heic": {"train/dog/IMG_1.HEIC": HEIC, "test/cat/renamed.jpg": HEIC},
        "extension": {"train/dog/notes.txt": b"x", "test/cat/movie.mp4": b"x"},
        "no_class": {"val/cover.png": (root / "val/cat/000.png").read_bytes()},
    }
    for files in contents.values():
        for name, content in files.items():
            (root / name).write_bytes(content)
    (root / "test/cat/link.png").symlink_to(root / "gone.png")
    whole.unlink()
    contents["unreadable"] = {"test/cat/link.png": b""}
    return {kind: {str(root / name) for name in files} for kind, files in contents.items()}


def parts(data, use="next"):
    return [Part(source, SIZE, "later" if split == "test" else use) for split, source in data.splits.items()]


def check(root, **options):
    data = load_data(f"folder:{root}", raise_problems=False)
    listed = [problem for found in data.problems.values() for problem in found]
    check_images(parts(data), f"folder:{root}", listed=listed, **options)


@pytest.fixture(name="reads")
def _reads(monkeypatch):
    """Counts how often each file is decoded."""
    reads, lock, real = Counter(), threading.Lock(), folder.read_image

    def read(path):
        with lock:
            reads[Path(path).name, Path(path).parent.parent.name, Path(path).parent.name] += 1
        return real(path)

    monkeypatch.setattr(folder, "read_image", read)
    return reads


@pytest.mark.parametrize("cache", ["auto", "memory", "disk", "none"])
def test_every_problem_of_every_split_is_told_at_once(cache, make_folder, cache_dir):
    root = make_folder(**SPLITS)
    broken = break_images(root)
    for _ in range(2):  # Also where what was found before is remembered.
        with pytest.raises(DataProblems) as caught:
            check(root, cache=cache)
        found = {kind: {p.place for p in caught.value.problems if p.kind == kind} for kind in broken}
        assert found == broken
        assert len(caught.value.problems) == sum(map(len, broken.values()))
    text = str(caught.value)
    assert text.startswith(f"{len(caught.value.problems)} files of folder:{root} cannot be used:\n")
    for kind, places in broken.items():
        assert f"  {len(places)} {KINDS[kind].one if len(places) == 1 else KINDS[kind].many}." in text
        assert all(place in text for place in places)
    assert "magick mogrify" in text and "image file is truncated" in text
    assert text.endswith("\n--skip_broken_images leaves them out.")
    assert not list(cache_dir.glob("images-*.partial"))


def test_the_flag_leaves_out_every_kind(make_folder, reads):
    root = make_folder(**SPLITS)
    broken = break_images(root)
    data = load_data(f"folder:{root}", skip_broken_images=True)
    check_images(parts(data), "folder", cache="none")
    left_out = {}
    for source in data.splits.values():
        for problem in source.left_out:
            left_out.setdefault(problem.kind, set()).add(problem.place)
    assert left_out == broken
    assert [len(source) for source in data.splits.values()] == [7, 7, 7]
    # What cannot be read now may be readable in a moment: only that is not remembered.
    before = sum(reads.values())
    again = load_data(f"folder:{root}", skip_broken_images=True)
    assert len(again.train) + len(again.validation) == 14 and sum(reads.values()) == before
    (root / "gone.png").write_bytes((root / "test/cat/001.png").read_bytes())
    assert len(again.test) == 8


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_images_are_decoded_once_through_the_cache(cache, skip, make_folder, reads):
    root = make_folder(**SPLITS)
    if skip:
        (root / "train/cat/000.png").write_bytes(b"")
        (root / "test/cat/000.png").write_bytes(b"")
    data = load_data(f"folder:{root}", skip_broken_images=skip)
    check_images(parts(data), "pets", cache=cache)
    for split, source in data.splits.items():
        batches = make_dataset(source, SIZE, batch_size=3, training=split == "train", cache=cache)
        assert sum(len(labels) for _, labels in batches) == len(source) == (7 if skip and split != "validation" else 8)
    # PROBES images of each split are read to estimate how large the cache becomes, but not where sizes are given.
    assert set(reads.values()) == {1} and len(reads) == 24


def test_what_was_looked_at_is_remembered(make_folder, reads, cache_dir):
    root = make_folder(**SPLITS)
    check(root, cache="none")
    assert set(reads.values()) == {1} and len(reads) == 24
    check(root, cache="none")
    assert sum(reads.values()) == 24
    # What is used next is cached, if that is wanted; the test images are not decoded again.
    check(root, cache="memory")
    assert sum(reads.values()) == 40
    (root / "test/dog/000.png").write_bytes(b"")
    with pytest.raises(DataError, match="000.png': the file is empty"):
        check(root, cache="none")


def test_what_cannot_be_read_now_is_not_left_out_for_ever(make_folder, monkeypatch):
    root = make_folder(**SPLITS)

    def read(path):
        if path.name == "001.png":
            raise DataError(f"Image file {str(path)!r} cannot be read: Input/output error.")
        return np.zeros((8, 8, 3), np.uint8)

    with monkeypatch.context() as patch:
        patch.setattr(folder, "read_image", read)
        assert len(load_data(f"folder:{root}", skip_broken_images=True).train) == 6
    assert len(load_data(f"folder:{root}", skip_broken_images=True).train) == 8


def test_progress_counts_every_image_once(make_folder):
    root = make_folder(**SPLITS)
    for _ in range(2):
        seen = []
        check(root, cache="none", progress=lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == sorted(seen) and seen[-1] == (24, 24)
    seen = []
    data = load_data(f"folder:{make_folder('other', **SPLITS)}")
    check_images(parts(data), "pets", cache="none", progress=lambda done, total: seen.append(done))
    assert seen == [*range(1, 25), 24]


def test_headers_are_read_without_decoding(make_folder, reads):
    root = make_folder(**SPLITS)
    broken = break_images(root)
    with pytest.raises(DataProblems) as caught:
        check(root, check="headers")
    found = {kind: {p.place for p in caught.value.problems if p.kind == kind} for kind in broken}
    assert not reads
    assert found == broken | {"damaged": set(), "no_range": set()}
    with pytest.raises(DataError, match="`check` must be one of pixels, headers. Received: check='header'. Did"):
        check(root, check="header")


def test_images_that_are_too_small_are_told_and_not_left_out(make_folder):
    root = make_folder(**SPLITS)
    for path in (root / "test/cat/000.png", root / "val/dog/001.png"):
        Image.new("RGB", (5, 5)).save(path)
    for cache in ("memory", "none", "none"):  # Decoded to be cached, decoded, known.
        data = load_data(f"folder:{root}", skip_broken_images=cache == "none")
        with pytest.raises(DataProblems) as caught:
            check_images([Part(source, "central_crop(8)") for source in data.splits.values()], "pets", cache=cache)
        assert {Path(problem.place).name for problem in caught.value.problems} == {"000.png", "001.png"}
        assert {problem.kind for problem in caught.value.problems} == {"unfit"}
        assert "Begin the augmentation with a resize." in str(caught.value)
        assert "skip_broken_images" not in str(caught.value)


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_images_of_different_sizes_are_told_of_the_test_split_too(cache, make_folder):
    root = make_folder(**SPLITS)
    Image.new("RGB", (50, 24)).save(root / "test/cat/000.png")
    with pytest.raises(DataError, match="After the augmentation 'resize.12.' the images have different sizes"):
        check_images(
            [Part(source, "resize(12)") for source in load_data(f"folder:{root}").splits.values()], "x", cache=cache
        )


def test_photos_that_are_all_in_heic(make_folder):
    root = make_folder(**SPLITS)
    for path in [*root.rglob("*.png")]:
        path.rename(path.with_suffix(".heic"))
    with pytest.raises(DataProblems, match="24 photos in HEIC, which Pillow does not read"):
        load_data(f"folder:{root}", raise_problems=False)
    with pytest.raises(DataError, match="No file of class 'cat' in .* can be used; none is left to train on"):
        load_data(f"folder:{root}", skip_broken_images=True)


def test_a_test_split_of_which_nothing_is_left(make_folder):
    root = make_folder(**SPLITS)
    for path in (root / "test").rglob("*.png"):
        path.rename(path.with_suffix(".heic"))
    data = load_data(f"folder:{root}", skip_broken_images=True)
    with pytest.raises(DataError, match="Every image of folder:.* test is broken, for example '.*heic'"):
        check_images(parts(data), "pets")


def test_one_problem_is_one_sentence(make_folder):
    root = make_folder(**SPLITS)
    (root / "test/cat/000.png").write_bytes(b"")
    with pytest.raises(DataProblems) as caught:
        check(root)
    place = str(root / "test/cat/000.png")
    assert str(caught.value) == f"Broken image {place!r}: the file is empty. --skip_broken_images leaves it out."


def test_a_source_that_leaves_images_out_knows_them_from_the_cache(make_folder, reads):
    root = make_folder(**SPLITS)
    make_dataset(load_data(f"folder:{root}").train, SIZE, batch_size=2, training=True, cache="disk")
    count = sum(reads.values())
    data = load_data(f"folder:{root}", skip_broken_images=True)
    assert isinstance(data.train, WithoutBroken)
    make_dataset(data.train, SIZE, batch_size=2, training=True, cache="disk")
    assert len(data.train) == 8 and sum(reads.values()) == count
