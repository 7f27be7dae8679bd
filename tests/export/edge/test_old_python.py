"""What goes to devices and to clients runs on Python 3.9 with numpy 1.19, and where there is no fcntl.

`PIGGYBACK_PYTHON39` names a Python 3.9 with numpy 1.19 and Pillow; CI makes one where it finds Python 3.9. Otherwise
Ruff checks these files for Python 3.9, by its target for them in pyproject.toml.
"""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.deployment import client
from export.edge import piggyback_edge
from export.edge.piggyback_edge import EdgeError, Model, main, write_file
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes
from piggyback_tf.data import images

ROOT = Path(__file__).parents[3]
FILES = [Path(module.__file__) for module in (piggyback_edge, client, images)]
PYTHON = os.environ.get("PIGGYBACK_PYTHON39")


@pytest.fixture(name="folder")
def _folder(base, make_task, tmp_path):
    (tmp_path / "base.tflite").write_bytes(base.data)
    (tmp_path / "manifest.bin").write_bytes(manifest_bytes(base.manifest))
    for name, compress in (("plain", False), ("coded", True)):
        (tmp_path / f"{name}.edge").write_bytes(task_bytes(make_task(), base.manifest, compress=compress))
    return tmp_path


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_the_files_are_of_python_39(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    # Of Python 3.10.
    assert not [call.lineno for call in calls if "strict" in {word.arg for word in call.keywords}]
    assert any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    targets = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["per-file-target-version"]
    assert targets[path.relative_to(ROOT).as_posix()] == "py39"


@pytest.mark.skipif(PYTHON is None, reason="needs PIGGYBACK_PYTHON39, a Python 3.9 with numpy 1.19")
def test_every_command_on_python_39(base, make_task, folder):
    for path, name in zip(FILES, ("piggyback_edge.py", "client.py", "piggyback_images.py"), strict=True):
        shutil.copy(path, folder / name)

    def run(*arguments):
        done = subprocess.run([PYTHON, *map(str, arguments)], capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert run("-c", "import sys, numpy; print(sys.version_info[:2], numpy.__version__)").startswith("(3, 9) 1.19.")
    model = Model(base)
    model.install(make_task())
    assert "2 tasks" in run("piggyback_edge.py", "verify", "base.tflite", "plain.edge", "coded.edge")
    for name in ("plain", "coded"):
        run("piggyback_edge.py", "install", "base.tflite", f"{name}.edge", "current.tflite")
        assert (folder / "current.tflite").read_bytes() == model.data
    assert "task birds of" in run("piggyback_edge.py", "installed", "base.tflite", "current.tflite")
    assert "wren" in run("piggyback_edge.py", "inspect", "base.tflite", "plain.edge")
    run("piggyback_edge.py", "remove", "base.tflite", "current.tflite")
    assert (folder / "current.tflite").read_bytes() == base.data
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "photo.png")
    program = (
        "import piggyback_edge as p, numpy as np; base = p.Base.load('base.tflite'); "
        "task = p.Task.load('plain.edge', base.manifest); "
        "np.save('seen.npy', p._load_image('photo.png', (8, 8), 'resize(10,10)|central_crop(8)')[0]); "
        "np.save('chances.npy', task.probabilities(np.ones((2, 6), 'f4'), bytes(open('m', 'rb').read())))"
    )
    (folder / "m").write_bytes(model.data)
    run("-c", program)
    expected = piggyback_edge.prepare(picture, "resize(10,10)|central_crop(8)")[None]
    np.testing.assert_array_equal(np.load(folder / "seen.npy"), expected)
    chances = make_task().probabilities(np.ones((2, 6), "f4"), model.data)
    np.testing.assert_allclose(np.load(folder / "chances.npy"), chances, rtol=1e-6)
    assert "predict" in run("client.py", "--help")


@pytest.fixture(name="windows")
def _windows(monkeypatch):
    """Takes away what Windows does not have, and refuses what it refuses; returns the files that are open."""
    opened, locked, real_open = {}, {}, os.open

    def locking(descriptor, mode, count):
        path = opened[descriptor]
        if path in locked:
            raise PermissionError(13, "Permission denied")
        locked[path] = descriptor

    def open_file(path, flags, *mode):
        if os.path.isdir(path):  # noqa: PTH112
            raise PermissionError(13, "Permission denied", str(path))
        descriptor = real_open(path, flags, *mode)
        opened[descriptor] = str(path)
        return descriptor

    def is_open(path):
        return any(name == str(path) and _is_open(number) for number, name in opened.items())

    def unless_open(real):
        def call(*arguments, **words):
            if any(map(is_open, arguments)):
                raise PermissionError(13, "The process cannot access the file", str(arguments[0]))
            return real(*arguments, **words)

        return call

    monkeypatch.setattr(piggyback_edge, "_WINDOWS", True)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=2))
    for name in ("O_NOFOLLOW", "fchmod"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(os, "O_BINARY", 0, raising=False)
    monkeypatch.setattr(os, "open", open_file)
    for name in ("replace", "unlink"):
        monkeypatch.setattr(Path, name, unless_open(getattr(Path, name)))
    return types.SimpleNamespace(opened=opened, locked=locked)


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_a_task_is_installed_where_there_is_no_fcntl(base, make_task, folder, windows):
    """What was tried of Windows is this; the rules of its files are played here."""
    files = [str(folder / name) for name in ("base.tflite", "plain.edge", "current.tflite")]
    model = Model(base)
    model.install(make_task())
    for _ in range(2):
        windows.locked.clear()
        assert main(["install", *files]) == 0
        assert Path(files[2]).read_bytes() == model.data
    assert not list(folder.glob("*.tmp"))
    windows.locked[f"{files[2]}.tmp"] = -1
    with pytest.raises(EdgeError, match="another process writes it"):
        write_file(files[2], b"x")
    assert Path(files[2]).read_bytes() == model.data


def test_what_fails_where_there_is_no_fcntl_leaves_nothing(folder, windows, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(folder / "current.tflite", b"x")
    assert not list(folder.glob("current*"))


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_of_files_are_those_of_their_owner(folder, mask, plain):
    """Both patchers: a new file by the umask, and one that is replaced as it was."""
    names = ["base.tflite", "manifest.bin", "plain.edge"]
    program = [str(plain / "piggyback_edge"), "install", *names]
    python = [sys.executable, str(FILES[0]), "install", names[0], names[2]]
    for number, command in enumerate((program, python)):
        target = folder / f"{number}.tflite"
        for mode in (0o644 & ~mask, 0o640, 0o444):
            if target.exists():
                target.chmod(mode)
            done = subprocess.run([*command, target.name], cwd=folder, umask=mask, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert target.stat().st_mode & 0o777 == mode
