"""Files that are written whole or not at all, what killed writers leave, and paths that people give."""

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from piggyback_tf.files import (
    PathError,
    atomic_file,
    local_path,
    scratch_folder,
    shown_path,
    temporary_folder,
    write_atomically,
)

ROOT = Path(__file__).parents[1]
LEFT = ".piggyback_tf-{:016x}.tmp"


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_permissions_are_those_of_any_new_file_and_those_of_the_old_one(tmp_path):
    mask = os.umask(0o027)
    try:
        write_atomically(tmp_path / "new", "one")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
        (tmp_path / "new").chmod(0o600)
        write_atomically(tmp_path / "new", "two")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "new").read_text() == "two"
    finally:
        os.umask(mask)


def test_the_umask_of_the_process_is_never_another_one(tmp_path, monkeypatch):
    # It is that of all threads.
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("a thread could write files for everybody"))
    write_atomically(tmp_path / "file", b"")


def test_a_file_may_have_the_longest_name_and_keeps_its_ending(tmp_path):
    name = f"{'x' * 243}.safetensors"
    with atomic_file(tmp_path / name) as temporary:
        assert temporary.suffix == ".safetensors"
        assert temporary.parent.parent == tmp_path
        temporary.write_text("whole")
    assert _names(tmp_path) == [name]


def test_a_link_stays_and_what_it_names_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    for text in ("one", "two"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "there" / "file").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert _names(tmp_path / "there") == ["file"]


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_refused_and_stays(kind, tmp_path):
    path = tmp_path / "target"
    if kind == "device" and os.geteuid():
        path = Path("/dev/full")
    elif kind == "device":
        # Not one that others use: root can replace it, and did.
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, Path("/dev/full").stat().st_rdev)
        except PermissionError:
            pytest.skip("root may make no devices here")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    (tmp_path / "link").symlink_to(path)
    before = path.stat()
    for target in (path, tmp_path / "link"):
        with pytest.raises(PathError, match=f"'{target}' cannot be written: it is a .*{kind}.* and no file"):
            write_atomically(target, b"x")
    assert (path.stat().st_mode, path.stat().st_ino) == (before.st_mode, before.st_ino)


def test_an_error_names_the_folder_and_no_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/none'"):
        write_atomically(tmp_path / "none" / "file", b"")


def test_the_next_writer_removes_what_killed_ones_left_and_nothing_else(tmp_path):
    kept = ["file.tmp", ".a.b.tmp", ".piggyback_tf-notes.tmp", f"{LEFT.format(1)}.bak", LEFT.format(0xF)]
    for name in kept[:-1]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "of somebody").touch()
    # By name it could be one, and is a link.
    (tmp_path / kept[-1]).symlink_to(tmp_path)
    for number, names in enumerate(([], [".lock"], [".lock", "pack"], ["pack"])):  # The last is half removed.
        folder = tmp_path / LEFT.format(0x10 + number)
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    with temporary_folder(tmp_path) as own:
        assert _names(tmp_path) == sorted([*kept, own.name])
        # Those that are written to are another matter.
        with temporary_folder(tmp_path) as other:
            assert _names(tmp_path) == sorted([*kept, own.name, other.name])
    assert _names(tmp_path) == sorted(kept)


def test_files_that_nobody_keeps_go_and_those_of_killed_processes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / LEFT.format(1)
    left.mkdir()
    (left / ".lock").touch()
    (left / "of a killed one").touch()
    with scratch_folder() as folder:
        assert _names(tmp_path) == [folder.name]
    assert not _names(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught, scratch_folder() as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "part"))
    assert caught.value.filename == str(tmp_path)


def test_errors_name_a_path_as_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("file", "./file", "link"):
        if path == "link":
            Path("link").symlink_to("file")
        with pytest.raises(OSError, match="No space left") as caught, atomic_file(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        assert caught.value.filename == path
    with pytest.raises(FileNotFoundError, match="'none'"):
        write_atomically("none/file", b"")


def test_a_writer_that_is_killed_is_told_from_one_that_lives(tmp_path):
    script = (
        "import sys; from piggyback_tf.files import temporary_folder\n"
        "with temporary_folder(sys.argv[1]) as folder: print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        folder = Path(writer.stdout.readline().strip())
        write_atomically(tmp_path / "one", b"")
        assert folder.is_dir()
        writer.kill()
    assert folder.is_dir()
    write_atomically(tmp_path / "two", b"")
    assert _names(tmp_path) == ["one", "two"]


def test_many_writers_in_one_folder_do_not_meet(tmp_path):
    def write(number):
        for turn in range(25):
            write_atomically(tmp_path / f"{number}", f"{turn}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: (tmp_path / name).read_text() for name in _names(tmp_path)} == dict.fromkeys("0123", "24")


def test_paths_that_people_give(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for given, path in (("a/b", "a/b"), ("~/x", "/home/me/x"), ("./gs://x", "gs:/x"), (Path("~/x"), "/home/me/x")):
        assert local_path(given, "--output=") == Path(path)
    for given in ("gs://bucket/x", "s3://bucket", "https://host/x"):
        with pytest.raises(PathError, match=f"--output={given}: this is a URL"):
            local_path(given, "--output=")


def test_a_name_that_is_no_text_can_be_shown():
    assert shown_path("a/caf\udce9") == "a/caf\\xe9"


_NO_ROOM = """
import resource, signal, sys
import numpy as np
from piggyback_tf.files import write_arrays, write_atomically

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write, content in ((write_atomically, [bytes(9999)]), (write_arrays, [{"a": np.zeros(9999)}, {}])):
    try:
        write(sys.argv[1], *content)
    except OSError as error:
        print(error.errno, error.filename, error.filename2, error.strerror)
"""


def test_a_disk_without_room_is_an_error_of_the_system_that_names_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", _NO_ROOM, path], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == [f"{errno.EFBIG} {path} None File too large"] * 2
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_a_rename_that_fails_names_the_file(tmp_path, monkeypatch):
    def fail(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self), None, str(target))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError) as raised:
        write_atomically(tmp_path / "file", b"")
    assert (raised.value.filename, raised.value.filename2) == (str(tmp_path / "file"), None)
    # Errors about other files are of whoever reads them.
    with pytest.raises(FileNotFoundError, match="'there/is/none'"), atomic_file(tmp_path / "file"):
        Path("there/is/none").read_bytes()


def test_a_name_that_is_empty_is_no_folder_to_be_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(PathError, match="empty, perhaps of a variable that is not set"):
        write_atomically("", b"")
    assert _names(tmp_path) == ["here"]
