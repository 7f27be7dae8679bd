import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from piggyback_tf.data import DataError, load_data, look
from piggyback_tf.files import shown_path


def files(source) -> list[str]:
    return [source.key(i) for i in range(len(source))]


def truncate(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path.with_suffix(".jpg"))
    data = path.with_suffix(".jpg").read_bytes()
    path.with_suffix(".jpg").unlink()
    path.write_bytes(data[: len(data) // 2])


def test_splits_classes_and_images(make_folder, picture):
    root = make_folder(train={"dog": 3, "cat": 2}, val={"cat": 1, "dog": 1}, test={"dog": 1, "cat": 1})
    data = load_data(f"folder:{root}")
    assert data.name == "pets" and data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 1] and data.train.labels.dtype == np.int32
    assert files(data.train)[0] == "train/cat/000.png"
    assert files(data.validation) == ["val/cat/000.png", "val/dog/000.png"]
    assert files(data.test) == ["test/cat/000.png", "test/dog/000.png"]
    assert np.array_equal(data.train.read(2), picture(number=0))
    assert data.train.describe(2) == str(root / "train/dog/000.png")


def test_validation_folder_by_its_long_name_and_no_test(make_folder):
    data = load_data(f"folder:{make_folder(train={'a': 2, 'b': 2}, validation={'a': 1})}")
    assert files(data.validation) == ["validation/a/000.png"] and data.test is None


def test_nested_files_capital_extensions_and_junk(make_folder):
    root = make_folder(train={"a": 2, "b": 2})
    nested = root / "train/a/2024/may"
    nested.mkdir(parents=True)
    shutil.copy(root / "train/a/000.png", nested / "x.PNG")
    for junk in (".DS_Store", "Thumbs.db", "._000.png", "desktop.ini"):
        (root / "train/a" / junk).write_bytes(b"junk")
    (root / "train/.ipynb_checkpoints").mkdir()
    for junk in ("@eaDir", "#recycle", "$RECYCLE.BIN", ".AppleDouble"):
        for folder in (root / junk, root / "train" / junk, root / "train/a" / junk):
            folder.mkdir()
            (folder / "000.png").write_bytes(b"junk")
    (root / "README.md").write_text("about")
    data = load_data(f"folder:{root}")
    assert sorted(files(data.train) + files(data.validation)) == [
        "train/a/000.png",
        "train/a/001.png",
        "train/a/2024/may/x.PNG",
        "train/b/000.png",
        "train/b/001.png",
    ]


def test_names_of_files_may_be_in_any_encoding(make_folder):
    root = make_folder(train={"a": 2, "b": 2}, test={"a": 1})
    for folder in ("train/a", "test/a"):
        (root / folder / "000.png").rename(root / folder / os.fsdecode(b"caf\xe9.png"))
    data = load_data(f"folder:{root}", skip_broken_images=True)
    assert sum(map(len, (data.train, data.validation, data.test))) == 5
    assert data.test.describe(0) == f"{root}/test/a/caf\\xe9.png"
    assert data.test.read(0).shape == (24, 32, 3)
    assert data.test.fingerprint()
    (root / "test/a" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    with pytest.raises(DataError, match=r"Every image of folder:.* test is broken, for example '.*/caf\\\\xe9.png'"):
        len(load_data(f"folder:{root}", skip_broken_images=True).test)
    (root / "test/a" / os.fsdecode(b"caf\xe9.png")).rename(root / "test/a" / os.fsdecode(b"caf\xe9.txt"))
    what = r"caf.*txt' in a class folder is not an image.*[^-]skip_broken_images=True leaves it out"
    with pytest.raises(DataError, match=what):  # In Python it is no flag.
        load_data(f"folder:{root}")


@pytest.mark.parametrize("place", ["train/caf\udce9", "test/caf\udce9", "../pet\udce9"])
def test_names_of_classes_and_of_the_folder_are_kept_as_text(make_folder, place):
    root = make_folder(train={"a": 2, "b": 2}, test={"a": 1})
    if place.startswith(".."):
        root = root.rename(root / place)
    else:
        (root / place.partition("/")[0] / "a").rename(root / place)
    named = re.escape(shown_path(root if place.startswith("..") else root / place))
    with pytest.raises(
        DataError,
        match=rf"older '{named}' has a name that is not in UTF-8. Rename it.*convmv".replace(r"\\x", r"\\\\x"),
    ):
        load_data(f"folder:{root}")


def test_classes_whose_names_look_the_same_are_the_same_in_all_splits(make_folder):
    here, mac = "h\u00e4user", "ha\u0308user"
    root = make_folder(train={here: 3, "dog": 2}, val={mac: 1, "dog": 1}, test={mac: 2, here: 1, "dog": 1})
    data = load_data(f"folder:{root}")
    assert data.class_names == ("dog", here)
    assert data.validation.labels.tolist() == [0, 1]
    # Each file under its own name.
    assert sorted(files(data.test)) == sorted(
        ["test/dog/000.png", f"test/{here}/000.png", f"test/{mac}/000.png", f"test/{mac}/001.png"]
    )
    assert data.test.labels.tolist() == [0, 1, 1, 1]


def test_linked_class_folder_is_followed_and_a_loop_is_named(make_folder, tmp_path):
    root = make_folder(train={"a": 2, "b": 2})
    shutil.move(root / "train/b", tmp_path / "elsewhere")
    (root / "train/b").symlink_to(tmp_path / "elsewhere")
    assert load_data(f"folder:{root}").class_names == ("a", "b")
    (root / "train/a/again").symlink_to(root / "train/a")
    with pytest.raises(DataError, match="train/a/again' is a link"):
        load_data(f"folder:{root}")


def test_carved_validation_is_stratified_and_the_same_for_any_place_and_order(make_folder, tmp_path):
    root = make_folder(train={"big": 40, "pair": 2, "single": 1})
    data = load_data(f"folder:{root}", val_fraction=0.1)
    assert np.bincount(data.validation.labels, minlength=3).tolist() == [4, 1, 0]
    assert np.bincount(data.train.labels, minlength=3).tolist() == [36, 1, 1]
    assert not set(files(data.train)) & set(files(data.validation))

    # The same files written in another order, to another place.
    copy = tmp_path / "copy"
    for path in sorted(root.rglob("*.png"), reverse=True):
        target = copy / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    assert files(load_data(f"folder:{copy}").validation) == files(data.validation)
    assert files(load_data(f"folder:{root}", seed=1).validation) != files(data.validation)


def test_carved_validation_is_a_fixed_function_of_the_paths(make_folder):
    # Written down so that another version, machine or file system that splits differently is noticed.
    data = load_data(f"folder:{make_folder(train={'a': 12, 'b': 12})}", val_fraction=0.2, seed=3)
    assert files(data.validation) == EXPECTED_SPLIT


EXPECTED_SPLIT = ["train/a/001.png", "train/a/008.png", "train/b/001.png", "train/b/003.png"]


def test_adding_images_of_one_class_does_not_move_another(make_folder):
    before = load_data(f"folder:{make_folder('one', train={'a': 10, 'b': 10})}", val_fraction=0.3)
    after = load_data(f"folder:{make_folder('two', train={'a': 10, 'b': 17})}", val_fraction=0.3)
    assert [f for f in files(before.validation) if "/a/" in f] == [f for f in files(after.validation) if "/a/" in f]


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda root: shutil.rmtree(root), "There is no folder '{root}'"),
        (lambda root: shutil.rmtree(root / "train"), "no folder 'train'. The layout must be PATH/train/CLASS/IMAGE"),
        (lambda root: (root / "train/empty").mkdir(), "Class folder '{root}/train/empty' has no images"),
        (lambda root: (root / "test/empty").mkdir(), "Class folder '{root}/test/empty' has no images"),
        (lambda root: shutil.rmtree(root / "train/a"), "Class 'a' is in '{root}/test' but not in '{root}/train'"),
        (lambda root: (root / "train/a/notes.txt").write_text("x"), "File '{root}/train/a/notes.txt'.*webp"),
        (
            lambda root: shutil.copy(root / "train/a/000.png", root / "train/0.png"),
            "{root}/train/0.png' is in no class",
        ),
        (
            lambda root: shutil.rmtree(root / "train/a") or shutil.rmtree(root / "train/b"),
            "'{root}/train' has no class",
        ),
        (lambda root: shutil.rmtree(root / "test/a"), "'{root}/test' has no class folders"),
        (
            lambda root: [shutil.rmtree(root / "train/b"), shutil.rmtree(root / "train/c")],
            "'{root}/train' has only one class, 'a'",
        ),
        (
            lambda root: [shutil.copytree(root / "test", root / n) for n in ("val", "validation")],
            "both 'val' and 'validation'",
        ),
    ],
)
def test_errors_name_what_is_wrong(make_folder, break_it, message):
    classes = {"a": 2, "b": 2} if "no class folders" in message or "train' has no class" in message else None
    root = make_folder(train=classes or {"a": 2, "b": 2, "c": 2}, test={"a": 1})
    break_it(root)
    with pytest.raises(DataError, match=message.format(root=root)):
        load_data(f"folder:{root}")


def test_path_is_a_file_or_empty(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file' is a file, not a folder"):
        load_data(f"folder:{tmp_path / 'file'}")
    with pytest.raises(DataError, match="must name a folder"):
        load_data("folder:")


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root reads every folder")
def test_unreadable_folder_is_named(make_folder):
    root = make_folder(train={"a": 2, "b": 2})
    (root / "train/b").chmod(0)
    code = f"from piggyback_tf.data import load_data; load_data('folder:{root}')"
    # Root may read anything, so that the child gives up that right.
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"] if os.geteuid() == 0 else []
    result = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (root / "train/b").chmod(0o755)
    assert f"DataError: Folder '{root}/train/b' cannot be read: Permission denied." in result.stderr


def test_broken_image_is_named_when_read(make_folder):
    root = make_folder(train={"a": 3, "b": 3}, val={"a": 1})
    truncate(root / "train/a/001.png")
    data = load_data(f"folder:{root}")
    with pytest.raises(DataError, match=f"Broken image '{root}/train/a/001.png'"):
        data.train.read(1)


def test_broken_images_are_skipped_counted_and_logged(make_folder, caplog, cache_dir, monkeypatch):
    root = make_folder(train={"a": 4, "b": 3}, val={"a": 2}, test={"a": 2, "b": 1})
    for broken in ("train/a/001.png", "train/b/000.png", "test/a/000.png"):
        truncate(root / broken)
    data = load_data(f"folder:{root}", skip_broken_images=True)
    assert files(data.train) == [f"train/{f}.png" for f in ("a/000", "a/002", "a/003", "b/001", "b/002")]
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.train.skipped == [str(root / "train/a/001.png"), str(root / "train/b/000.png")]
    assert data.validation.skipped == []
    assert f"Skipped 2 broken of 7 images of folder:{root} train: {root}/train/a/001.png" in caplog.text
    assert "folder:" in caplog.text and f"folder:{root} test" not in caplog.text
    assert len(data.test) == 2 and data.test.skipped == [str(root / "test/a/000.png")]

    # The result is kept: the images are not decoded a second time while the files stay as they are.
    again = load_data(f"folder:{root}", skip_broken_images=True)
    again.train.raw.read = None
    assert len(again.train) == 5
    truncate(root / "train/a/003.png")
    assert len(load_data(f"folder:{root}", skip_broken_images=True).train) == 4
    # What counts as broken follows from how files are decoded.
    monkeypatch.setattr(look, "PIXELS_VERSION", "1")
    again = load_data(f"folder:{root}", skip_broken_images=True)
    again.train.raw.read = None
    with pytest.raises(TypeError):
        len(again.train)


def test_a_class_without_a_whole_image(make_folder):
    root = make_folder(train={"a": 2, "b": 2}, val={"a": 1})
    for path in (root / "train/b").iterdir():
        truncate(path)
    with pytest.raises(DataError, match="Every image of class 'b' in folder:.* train is broken"):
        len(load_data(f"folder:{root}", skip_broken_images=True).train)


def test_nothing_of_the_test_split_is_read_before_it_is_used(make_folder, monkeypatch):
    root = make_folder(train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    opened = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(str(path)) or real(path))
    data = load_data(f"folder:{root}", skip_broken_images=True)
    len(data.train), len(data.validation)
    assert opened and not any("/test/" in path for path in opened)
    data.test.read(0)
    assert str(root / "test/a/000.png") in opened


def test_a_folder_of_classes_is_told_how_it_becomes_a_data_set(tmp_path, make_folder):
    folder = make_folder(train={"cat": 2, "dog": 2})
    with pytest.raises(DataError) as caught:
        load_data(f"folder:{folder / 'train'}")
    assert str(caught.value).endswith(f"the folder 'train' itself: name the one that it is in, {str(folder)!r}.")
    root = (folder / "train").rename(folder / "pets")
    with pytest.raises(DataError) as caught:
        load_data(f"folder:{root}")
    cure = f"Its folders look like classes: make a folder {str(root / 'train')!r}, and move them there."
    assert str(caught.value).endswith(cure)
    # Not where images lie otherwise.
    for name in (root / "cat", root.parent.parent):
        with pytest.raises(DataError, match="has no folder 'train'") as caught:
            load_data(f"folder:{name}")
        assert "look like classes" not in str(caught.value)
