"""Files that are given by URLs."""

import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from piggyback_tf.packs import PackError, TaskPack
from piggyback_tf.remote import (
    MissingFileError,
    RemoteError,
    is_url,
    local_input,
    local_output,
    read_bytes,
    write_bytes,
)
from tests.packs.helpers import make_pack

ROOT = Path(__file__).parents[1]


class _BrokenFileSystem(MemoryFileSystem):
    """A store whose driver raises errors of its own."""

    protocol = "broken"

    def cat_file(self, path, **_):
        raise RuntimeError("no credentials\nwere found.")

    def pipe_file(self, path, value, **_):
        raise NotImplementedError


@pytest.fixture(name="memory", autouse=True)
def _memory():
    """The address of a folder in fsspec's memory, which is empty again afterwards."""
    yield "memory://tests"
    MemoryFileSystem.store.clear()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("memory://tests/pack", True),
        ("gs://bucket/pack", True),
        ("hf://owner/name/pack", True),
        ("file:///tmp/pack", True),
        ("packs/birds", False),
        ("/packs/gs://bucket/pack", False),
        ("./gs://bucket/pack", False),
        ("gs:/bucket/pack", False),
        ("C://packs/birds", False),
        ("C:\\packs\\birds", False),
        (Path("gs://bucket/pack"), False),
        ("a b://c", False),
    ],
)
def test_what_is_a_url(path, expected):
    assert is_url(path) == expected


def test_unknown_protocols_are_paths_if_there_is_such_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RemoteError, match=r"'gs3://x/pack': Unknown protocol 'gs3'. Did you mean .*'gs'"):
        is_url("gs3://x/pack")
    (tmp_path / "gs3:" / "x").mkdir(parents=True)
    write_bytes("gs3://x/pack", b"local")
    assert read_bytes("gs3://x/pack") == (tmp_path / "gs3:/x/pack").read_bytes() == b"local"


def test_there_and_back(memory):
    url = f"{memory}/folder/pack"
    with pytest.raises(MissingFileError, match=f"^There is no file '{url}'.$"):
        read_bytes(url)
    write_bytes(url, b"one")
    assert read_bytes(url) == b"one"
    write_bytes(url, b"two")
    assert read_bytes(url) == b"two"


def test_packs_by_url(memory):
    pack, url = make_pack(), f"{memory}/birds.task.safetensors"
    with pytest.raises(FileNotFoundError, match="There is no file"):
        TaskPack.load(url)
    pack.save(url, codec="bits")
    assert read_bytes(url) == pack.to_bytes("bits")
    assert TaskPack.load(url).content_digest() == pack.content_digest()
    write_bytes(url, pack.to_bytes()[:-1])
    with pytest.raises(PackError, match=f"The file '{url}' should be"):
        TaskPack.load(url)


def test_a_file_longer_than_any_pack_is_not_read(memory, monkeypatch):
    write_bytes(f"{memory}/pack", make_pack().to_bytes())
    monkeypatch.setattr(MemoryFileSystem, "size", lambda *_: 1 << 40)
    with pytest.raises(RemoteError, match=r"has 1,099,511,627,776 bytes; at most 2,147,483,648 are read\.$"):
        TaskPack.load(f"{memory}/pack")
    # A server need not know.
    monkeypatch.setattr(MemoryFileSystem, "size", lambda *_: None)
    assert TaskPack.load(f"{memory}/pack").task == "birds"


def test_local_copies(memory):
    with local_output(f"{memory}/model.keras") as path:
        assert path.name == "model.keras"
        path.write_bytes(b"model")
        with pytest.raises(FileNotFoundError):
            read_bytes(f"{memory}/model.keras")
    with local_input(f"{memory}/model.keras") as copy:
        assert Path(copy).name == "model.keras"
        assert Path(copy).read_bytes() == b"model"
    assert not path.exists()
    assert not Path(copy).exists()
    with pytest.raises(RuntimeError), local_output(f"{memory}/model.keras") as path:
        path.write_bytes(b"a part")
        raise RuntimeError
    assert read_bytes(f"{memory}/model.keras") == b"model"


def test_local_files_are_not_copied(tmp_path):
    with local_output(tmp_path / "model.keras") as path:
        path.write_bytes(b"model")
    with local_input(tmp_path / "model.keras") as copy:
        assert copy == str(tmp_path / "model.keras")
    assert read_bytes(tmp_path / "model.keras") == b"model"


def test_files_by_url_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    url = f"file://{tmp_path}/pack"
    write_bytes(url, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RemoteError, match=f"'{url}' could not be written: .*No space left on device"):
            write_bytes(url, b"new")
    assert read_bytes(url) == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["pack"]
    with pytest.raises(MissingFileError, match=f"^There is no folder for 'file://{tmp_path}/no/pack'.$"):
        write_bytes(f"file://{tmp_path}/no/pack", b"new")


@pytest.mark.parametrize(("url", "package"), [("gs://bucket/pack", "gcsfs"), ("s3://bucket/pack", "s3fs")])
def test_a_driver_that_is_not_installed_is_named(monkeypatch, url, package):
    # Whether it is installed here or not.
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.partition(":")[0], raising=False)
    for use in (lambda: read_bytes(url), lambda: write_bytes(url, b"")):
        with pytest.raises(RemoteError, match=f"^'{url}' needs a driver that is not installed: .*{package}"):
            use()


def test_errors_of_drivers_are_sentences():
    fsspec.register_implementation("broken", _BrokenFileSystem, clobber=True)
    with pytest.raises(RemoteError, match=r"^'broken://pack' could not be read: no credentials were found\.$"):
        read_bytes("broken://pack")
    with pytest.raises(RemoteError, match=r"^'broken://pack' cannot be written: its driver has no way to do so\.$"):
        write_bytes("broken://pack", b"")


def test_local_files_need_neither_fsspec_nor_tensorflow(tmp_path):
    program = (
        "import sys; from piggyback_tf import remote; remote.write_bytes(sys.argv[1], b'x'); "
        "print(remote.read_bytes(sys.argv[1]), [m for m in ('fsspec', 'tensorflow', 'keras') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "file"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert run.stdout == "b'x' []\n"
