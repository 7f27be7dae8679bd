"""What the patcher for devices makes of a base: in memory, on disk, and where it is killed."""

import fcntl
import hashlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from export.edge import piggyback_edge
from export.edge.piggyback_edge import EdgeError, Model, Task, main, weight_cache
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes

PATCHER = Path(piggyback_edge.__file__)


def _by_rule(base, task):
    """Returns the patched bytes, one element at a time, as docs/edge-format.md says."""
    out = bytearray(base.data)
    for place, entry in enumerate(base.manifest.entries):
        for i in range(entry.size):
            width = entry.dtype.itemsize
            part = slice(entry.offset + i * width, entry.offset + (i + 1) * width)
            value = np.frombuffer(base.data[part], entry.dtype)[0]
            if place in task.ratios:
                ratio = task.ratios[place][i // entry.inner % entry.channels]
                if width == 1:
                    value = np.int8(value * int(ratio))
                else:
                    product = np.float32(value) * ratio
                    value = product.astype(entry.dtype)
                    if np.isinf(value):
                        value = np.copysign(entry.dtype.type(65504), product)
            if place in task.masks:
                keep, sign = (np.unpackbits(plane, bitorder="little")[i] for plane in task.masks[place])
                value = -value if sign else value
                value = value if keep else entry.dtype.type(0)
            out[part] = entry.dtype.type(value).tobytes()
        if place in task.new_bytes:
            content = task.new_bytes[place]
            out[entry.offset : entry.offset + entry.nbytes] = content + bytes(entry.nbytes - len(content))
    place = base.manifest.task_place
    out[place : place + 32] = _digest_by_rule(task_bytes(task, base.manifest))
    return out


def _digest_by_rule(file):
    """Returns the digest of the task in a file without compression, as docs/edge-format.md says."""
    bounds = struct.unpack_from("<12Q", file, 136)
    sections = [file[offset : offset + length] for offset, length in zip(bounds[::2], bounds[1::2], strict=True)]
    parts = [hashlib.sha256(sections[number]).digest() for number in (0, 3, 4, 5)]
    return hashlib.sha256(file[40:136] + b"".join(parts)).digest()


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")
def test_installing_is_what_the_document_says(base, make_task):
    model = Model(base)
    for seed, ratios in ((0, None), (1, {})):
        task = make_task(seed=seed) if ratios is None else make_task(seed=seed, ratios=ratios)
        model.install(task)
        assert model.data == _by_rule(base, task)
    zeros = np.frombuffer(model.data, "<i4", 60, base.manifest.entries[0].offset) == 0
    assert 10 < zeros.sum() < 30
    model.remove()
    assert model.data == base.data


def test_what_was_installed_before_plays_no_part(base, make_task):
    first, second = Model(base), Model(base)
    first.install(make_task(seed=3))
    plain = make_task(seed=4, ratios={}, new_bytes={}, masks={})
    first.install(plain)
    second.install(plain)
    assert first.data == second.data
    place = base.manifest.task_place
    assert first.data[:place] + bytes(32) + first.data[place + 32 :] == base.data


@pytest.fixture(name="folder")
def _folder(base, make_task, tmp_path):
    (tmp_path / "base.tflite").write_bytes(base.data)
    (tmp_path / "manifest.bin").write_bytes(manifest_bytes(base.manifest))
    (tmp_path / "birds.edge").write_bytes(task_bytes(make_task(), base.manifest))
    return tmp_path


def test_commands(base, make_task, folder, capsys):
    files = [str(folder / name) for name in ("base.tflite", "birds.edge", "current.tflite")]
    model = Model(base)
    model.install(make_task())
    assert main(["verify", *files[:2]]) == 0
    assert main(["install", *files]) == 0
    assert Path(files[2]).read_bytes() == model.data
    assert main(["remove", files[0], files[2]]) == 0
    assert Path(files[2]).read_bytes() == Path(files[0]).read_bytes() == base.data
    capsys.readouterr()
    assert main(["inspect", *files[:2]]) == 0
    printed = capsys.readouterr().out
    # What a file says does not reach the terminal as it is.
    assert "wren" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "base.tflite").write_bytes(b"x"), "base.tflite' is damaged"),
        (lambda folder: (folder / "birds.edge").write_bytes(b"x" * 300), "file of another kind"),
        (lambda folder: (folder / "manifest.bin").unlink(), "manifest.bin"),
        (lambda folder: (folder / "current.tflite").hardlink_to(folder / "base.tflite"), "the base itself and never"),
        (lambda folder: (folder / "current.tflite").symlink_to("manifest.bin"), "read for this and never written to"),
        (lambda folder: (folder / "current.tflite").hardlink_to(folder / "birds.edge"), "read for this and never"),
        (lambda folder: (folder / "current.tflite.tmp").symlink_to("manifest.bin"), "current.tflite.tmp"),
        (
            lambda folder: (folder / "current.tflite").write_bytes(b"PBEDGETS and more"),
            "is there already, and is no model",
        ),
        (
            lambda folder: (folder / "current.tflite.tmp").hardlink_to(folder / "base.tflite"),
            ".tmp' is the base itself",
        ),
    ],
)
def test_what_the_command_refuses(folder, change, message, capsys):
    change(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["install", *(str(folder / name) for name in ("base.tflite", "birds.edge", "current.tflite"))]) == 2
    error = capsys.readouterr().err
    assert error.startswith("piggyback_edge: ")
    assert message in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_says_what_is_installed(base, make_task, folder, capsys):
    files = [str(folder / name) for name in ("base.tflite", "current.tflite")]
    other = folder / "elsewhere" / "cats.edge"
    other.parent.mkdir()
    other.write_bytes(task_bytes(make_task(name="cats\x1b", seed=2), base.manifest))

    def say(command, *arguments, status=0):
        assert main([command, *map(str, arguments)]) == status
        captured = capsys.readouterr()
        return (captured.err if status else captured.out).strip()

    say("install", files[0], folder / "birds.edge", files[1])
    assert say("installed", *files) == f"{files[1]}: task birds of '{folder / 'birds.edge'}'"
    say("install", files[0], other, files[1])
    digest = Task.load(other, base.manifest).digest.hex()
    unknown = f"{files[1]}: a task with the digest {digest}, which is in none of the files that were looked at"
    assert say("installed", *files) == unknown
    (folder / "damaged.edge").write_bytes(b"x")
    assert say("installed", *files) == unknown
    assert "file of another kind" in say("installed", *files, folder / "damaged.edge", status=2)
    assert say("installed", *files, other) == f"{files[1]}: task 'cats\\x1b' of '{other}'"
    content = bytearray(Path(files[1]).read_bytes())
    content[base.manifest.entries[0].offset] ^= 1
    Path(files[1]).write_bytes(content)
    assert "says that task 'cats\\x1b' is on it, but is damaged" in say("installed", *files, other, status=2)
    say("remove", *files)
    assert say("installed", *files) == f"{files[1]}: no task, it is the base"
    Path(files[1]).write_bytes(bytes([base.data[0] ^ 1]) + base.data[1:])
    assert "has no task on it, and is not the base" in say("installed", *files, status=2)
    Path(files[1]).write_bytes(base.data[1:])
    assert "it is not of this base" in say("installed", *files, status=2)


def test_each_task_has_a_weight_cache_of_its_own(base, make_task, folder, capsys):
    """XNNPACK takes any cache that lies at its path: those of what was installed before are removed."""
    names = [str(folder / name) for name in ("base.tflite", "current.tflite")]
    (folder / "cats.edge").write_bytes(task_bytes(make_task(name="cats", seed=2), base.manifest))
    kept = ["current.tflite.xnnpack", f"other.tflite.{'0' * 32}.xnnpack", f"current.tflite.{'0' * 31}.xnnpack"]
    for name in kept:
        (folder / name).touch()
    caches = []
    for command in (["birds.edge"], ["cats.edge"], ["birds.edge"], []):
        arguments = [names[0], *(str(folder / name) for name in command), names[1]]
        assert main(["install" if command else "remove", *arguments]) == 0
        caches.append(Path(capsys.readouterr().out.strip().rpartition(": ")[2]))
        # What was before is gone, and what is of this task stays.
        assert sorted(path.name for path in folder.glob("*.xnnpack") if path.name not in kept) == []
        caches[-1].touch()
        assert main(["install" if command else "remove", *arguments]) == 0
        capsys.readouterr()
        assert caches[-1].exists()
    assert caches[0] == caches[2] == weight_cache(names[1], Task.load(folder / "birds.edge", base.manifest).digest)
    assert len(set(caches)) == 3
    assert all((folder / name).exists() for name in kept)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_not_replaced(folder, make, capsys):
    target = folder / "current.tflite"
    make(target)
    before = target.stat()
    assert main(["install", str(folder / "base.tflite"), str(folder / "birds.edge"), str(target)]) == 2
    assert "cannot be written: what is there is no file" in capsys.readouterr().err
    assert os.path.samestat(target.stat(), before)
    assert not list(folder.glob("*.tmp"))


def test_a_full_disk_leaves_the_old_model(folder):
    command = [sys.executable, PATCHER, "install", "base.tflite", "birds.edge", "current.tflite"]
    assert subprocess.run(command, cwd=folder).returncode == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    limited = ["bash", "-c", "ulimit -f 0; trap '' XFSZ; exec \"$@\"", "bash", *map(str, command)]
    done = subprocess.run(limited, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.endswith("File too large: 'current.tflite'\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_two_processes_do_not_write_the_same_file(folder, capsys):
    arguments = ["install", *(str(folder / name) for name in ("base.tflite", "birds.edge", "current.tflite"))]
    with (folder / "current.tflite.tmp").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(arguments) == 2
    assert "another process writes it" in capsys.readouterr().err
    assert main(arguments) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no .npy file of numbers"), (b"PK\x05\x06" + bytes(18), "no .npy file of numbers"), (None, "No such file")],
)
def test_images_that_are_none(folder, content, message, capsys, monkeypatch):
    monkeypatch.setattr(piggyback_edge, "_interpreter", lambda data, threads: None)
    if content is not None:
        (folder / "image.npy").write_bytes(content)
    assert main(["predict", *(str(folder / name) for name in ("base.tflite", "birds.edge", "image.npy"))]) == 2
    assert message in capsys.readouterr().err


def test_a_task_for_another_base_is_refused(base, make_task):
    data = bytearray(task_bytes(make_task(), base.manifest))
    data[40:72] = bytes(32)
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    with pytest.raises(EdgeError, match="another base"):
        piggyback_edge.Task.from_bytes(bytes(data), base.manifest)


def test_the_patcher_needs_numpy_and_nothing_else(folder):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import piggyback_edge as p; "
        "p.main(['verify', 'base.tflite', 'birds.edge']); "
        "print(sorted({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    run = subprocess.run([sys.executable, "-c", program, PATCHER.parent], capture_output=True, text=True, cwd=folder)
    found = run.stdout.splitlines()[-1]
    assert "numpy" in found
    assert not any(name in found for name in ("tensorflow", "export", "piggyback_tf", "keras", "safetensors")), found


# Installs tasks by turns, in the order that it is told, in a process that is killed. That one is forked, since starting
# Python takes longer than patching, and from a small one, since forking what has loaded TensorFlow does, too.
INSTALLER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from piggyback_edge import main
for order in sys.stdin:
    child = os.fork()
    while not child:
        sys.stdout = open(os.devnull, "w")
        for seed in order.split():
            main(["install", "base.tflite", f"{seed}.edge", "current.tflite"])
    print(child, flush=True)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_while_patching_on_disk(base, make_task, folder):
    """The target is what it was or what it becomes, and the base is whole, wherever the patcher is killed."""
    model, target = Model(base), folder / "current.tflite"
    wanted = []
    for seed in (0, 1):
        task = make_task(seed=seed)
        (folder / f"{seed}.edge").write_bytes(task_bytes(task, base.manifest))
        model.install(task)
        wanted.append(bytes(model.data))
    target.write_bytes(wanted[0])
    rng, seen, last, span = random.Random(0), set(), 0, 0.02
    command = [sys.executable, "-c", INSTALLER, PATCHER.parent]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as installer:
        for number in range(100):
            # Few children get to a second one.
            installer.stdin.write("1 0\n" if number % 2 else "0 1\n")
            installer.stdin.flush()
            child = int(installer.stdout.readline())
            time.sleep(rng.uniform(0.0, span))
            os.kill(child, signal.SIGKILL)
            assert int(installer.stdout.readline()) == signal.SIGKILL
            content = target.read_bytes()
            assert content in wanted
            seen.add(wanted.index(content))
            # On a busy machine it takes longer until a file is replaced.
            written = target.stat().st_mtime_ns
            span *= 0.9 if written != last else 1.05
            last = written
            assert (folder / "base.tflite").read_bytes() == base.data
        installer.stdin.close()
    assert seen == {0, 1}
    # What was left behind is used again.
    assert main(["install", *(str(folder / name) for name in ("base.tflite", "0.edge")), str(target)]) == 0
    assert not list(folder.glob("*.tmp"))
