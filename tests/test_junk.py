"""What nobody put there on purpose is no data, wherever a folder is read."""

import inspect

import pytest

from export.deployment import client
from piggyback_tf import junk
from piggyback_tf.packs import TaskBank
from piggyback_tf.packs.find import find_packs
from tests.packs.helpers import packs_of_all_kinds, small_backbone

# Folders and the files that are put beside each file or into each folder.
FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", ".AppleDouble", "__MACOSX", ".Trash-1000")
FILES = ("._{}", "Thumbs.db", "desktop.ini", ".DS_Store")


def _litter(folder):
    """Puts junk into a folder and into those below it, under the names of the files that are there."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        for name in FILES:
            (path.parent / name.format(path.name)).write_bytes(b"\0\5\x16\7 no data")
        for name in FOLDERS:
            (path.parent / name / path.name).mkdir(parents=True)
            for each in (path.name, f"{path.name}/{path.name}"):
                target = path.parent / name / each
                if not target.exists():
                    target.write_bytes(b"no data")
            (path.parent / name / f"thumbnail{path.suffix}").write_bytes(b"no data")


@pytest.fixture(name="pictures")
def _pictures(tmp_path):
    names = ("a.jpg", "b.PNG", "more/c.jpeg")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"not looked at")
    _litter(tmp_path)
    return [str(tmp_path / name) for name in names]


def test_files_of_a_folder(pictures, tmp_path):
    assert [str(path) for path in junk.find_files(tmp_path)] == pictures


def test_the_folder_itself_may_have_any_name(tmp_path):
    folder = tmp_path / ".photos"
    folder.mkdir()
    (folder / "a.jpg").touch()
    assert list(junk.find_files(folder)) == [folder / "a.jpg"]


def test_the_client_sends_no_junk(pictures, tmp_path):
    assert client._find_images([str(tmp_path)], None, "birds") == [(path, "birds") for path in pictures]


def test_the_client_has_a_copy_of_the_one_definition():
    assert client.JUNK == junk.JUNK
    assert inspect.getsource(client.is_junk) == inspect.getsource(junk.is_junk)


def test_folders_and_patterns_of_packs(tmp_path):
    backbone = small_backbone()
    packs = packs_of_all_kinds(backbone)[:2]
    for pack in packs:
        pack.save(tmp_path / f"{pack.task}.task.safetensors")
    files = sorted(map(str, tmp_path.iterdir()))
    _litter(tmp_path)
    assert find_packs([str(tmp_path)]) == find_packs([f"{tmp_path}/**/*.task.safetensors"]) == files
    assert find_packs([files[0]]) == files[:1]
    assert sorted(TaskBank(backbone).add(tmp_path).names) == sorted(pack.task for pack in packs)
    # What is named is meant.
    hidden = tmp_path / ".kept"
    hidden.mkdir()
    (hidden / "._x.task.safetensors").touch()
    assert find_packs([f"{hidden}/._x.task.*"]) == [f"{hidden}/._x.task.safetensors"]
