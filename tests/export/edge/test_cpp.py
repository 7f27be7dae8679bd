"""The C++ patcher, built with CMake, with sanitizers too: bytes of the Python one, damaged files, killed writers."""

import fcntl
import hashlib
import itertools
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import constriction
import numpy as np
import pytest

from export.edge.piggyback_edge import EdgeError, Manifest, Task, weight_cache
from piggyback_tf.packs.zero_rates import RATES
from tests.export.edge.conftest import SOURCE
from tests.export.edge.cpp_files import FEATURES, make_device, make_task

QUANTIZATIONS = ("none", "float16", "dynamic", "int8")
KILLS = 100


class Files:
    """A device's files in a folder, and the program that is called with them."""

    def __init__(self, folder, program, device, **tasks):
        self.folder, self.program, self.device = folder, program / "piggyback_edge", device
        self.base, self.manifest, self.model = (folder / name for name in ("base.tflite", "manifest.bin", "m.tflite"))
        self.base.write_bytes(device.base)
        self.manifest.write_bytes(device.content())
        for name, data in tasks.items():
            self.write(name, data)

    def write(self, name, data):
        path = self.folder / f"{name}.edge"
        path.write_bytes(data)
        return path

    def run(self, command, *arguments):
        done = subprocess.run([self.program, command, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode in (0, 2), done.stderr
        assert (done.returncode == 0) == (done.stderr == ""), done.stderr
        return done

    def fails(self, command, *arguments):
        """Returns the sentence that a command fails with."""
        done = self.run(command, *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("piggyback_edge: "), done.stderr
        assert done.stderr.endswith(".\n") and done.stderr.count("\n") == 1
        return done.stderr

    def install(self, task, target=None):
        """Installs a task on the disk and returns the model."""
        target = target or self.model
        done = self.run("install", self.base, self.manifest, task, target)
        assert done.returncode == 0, done.stderr
        return target.read_bytes()


def _signed(data, **fields):
    """Returns a file with 4-byte numbers changed, by place (`at40=7`), and with a digest that fits again."""
    data = bytearray(data)
    for place, value in fields.items():
        struct.pack_into("<I", data, int(place[2:]), value)
    data[-32:] = hashlib.sha256(data[:-32]).digest()
    return bytes(data)


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
@pytest.mark.parametrize("max_classes", [0, 5])
def test_bytes_are_those_of_the_python_patcher(quantize, max_classes, plain, tmp_path):
    device = make_device(quantize, max_classes)
    files = Files(tmp_path, plain, device)
    models = set()
    for number, (ternary, norm, compress) in enumerate(itertools.product((False, True), repeat=3)):
        task = make_task(device, ternary, norm, compress, seed=number // 2)
        expected = device.installed(task)
        assert files.install(files.write("task", task)) == expected
        models.add(expected)
    assert len(models) == 4  # Compressed and not, a task is the same.
    assert files.run("remove", files.base, files.manifest, files.model).returncode == 0
    assert files.model.read_bytes() == files.base.read_bytes() == device.base


@pytest.mark.parametrize("quantize", QUANTIZATIONS)
def test_composed_filters_have_the_bytes_of_the_python_patcher(quantize, plain, sanitized, tmp_path):
    """Sums of products, which a compiler would like to fuse: with all optimisations and with sanitizers."""
    device = make_device(quantize, room=128)
    files = [Files(folder, program, device) for folder, program in _folders(tmp_path, plain, sanitized)]
    for number, (ternary, compress) in enumerate(((False, False), (True, True))):
        task = make_task(device, ternary, True, compress, seed=number, composed=True)
        read = Task.from_bytes(task, device.manifest)
        assert read.version == 3 and len(read.compositions) >= 3
        assert any(made_of.down is not None for made_of in read.compositions.values())
        for each in files:
            assert each.install(each.write("task", task)) == device.installed(task)


def _folders(folder, *programs):
    for number, program in enumerate(programs):
        (folder / str(number)).mkdir()
        yield folder / str(number), program


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 8),  # What it has.
        (0, 3),  # No factors, whose sides are there.
        (4, 0),
        (4, 1 << 31),
        (8, 0),
        (8, 11),
        (12, 1 << 31),
        (16, 0x7FC00000),  # NaN.
        (40, 0x7F800000),
    ],
)
def test_a_composition_that_cannot_be_is_refused_by_both(place, value, plain, tmp_path):
    device = make_device("int8")
    files = Files(tmp_path, plain, device)
    task = bytearray(make_task(device, composed=True))
    assert files.run("install", files.base, files.manifest, files.write("good", task), files.model).returncode == 0
    (start,) = struct.unpack_from("<Q", task, 136 + 16 * 4)
    assert struct.unpack_from("<II", task, start)[1] == 3
    bad = _signed(task, **{f"at{start + 16 + place}": value})
    with pytest.raises(EdgeError):
        Task.from_bytes(bad, device.manifest)
    assert "correction" in files.fails("install", files.base, files.manifest, files.write("bad", bad), files.model)


def test_the_version_says_whether_filters_are_composed(plain, tmp_path):
    device = make_device()
    files = Files(tmp_path, plain, device)
    for composed, version in ((True, 2), (False, 3)):
        bad = _signed(make_task(device, composed=composed), at8=version)
        with pytest.raises(EdgeError):
            Task.from_bytes(bad, device.manifest)
        files.fails("install", files.base, files.manifest, files.write("bad", bad), files.model)


def test_every_rate_is_decoded(plain, tmp_path):
    """A filter for each rate of dropped and of negated weights, coded by the library of the packs."""
    size, codes = 40, np.arange(256)
    device = make_device(filters=((size, 1, size),) * codes.size)
    rng = np.random.default_rng(0)
    coder = constriction.stream.stack.AnsCoder()
    masks, rates, models = [], np.stack([codes, rng.permutation(codes)], axis=1), []
    for drop, negate in RATES[rates].tolist():
        shares = np.array([drop << 16, (65536 - drop) * (65536 - negate), (65536 - drop) * negate]) / 2.0**32
        values = np.flatnonzero(shares)
        symbols = rng.integers(0, values.size, size, dtype=np.int32)
        models.append((symbols, shares[values]))
        masks.append(np.stack([np.packbits(values[symbols] > plane, bitorder="little") for plane in (0, 1)]))
    for symbols, shares in reversed(models):
        if shares.size > 1:
            coder.encode_reverse(symbols, constriction.stream.model.Categorical(shares, perfect=False, lazy=False))
    raw = b"".join(mask.tobytes() for mask in masks)
    words = coder.get_compressed().astype("<u4").tobytes()
    plain_task = make_task(device, ternary=True, masked=1.1)
    coded, bits = (
        _with_masks(plain_task, device, raw, section, rates_section)
        for section, rates_section in ((words, rates.astype(np.uint8).tobytes()), (raw, b""))
    )
    files = Files(tmp_path, plain, device)
    assert files.install(files.write("coded", coded)) == files.install(files.write("bits", bits))
    assert files.install(files.write("bits", bits)) == device.installed(bits)


def _with_masks(task, device, raw, section, rates):
    """Returns a task whose masks are all others; with rates they are compressed."""
    bounds = struct.unpack_from("<12Q", task, 136)
    sections = [task[offset : offset + length] for offset, length in zip(bounds[::2], bounds[1::2], strict=True)]
    sections[1:3] = section, rates
    header = bytearray(task[:256])
    struct.pack_into("<I", header, 12, 1 | (2 if rates else 0))
    header[104:136] = hashlib.sha256(raw).digest()
    body = b""
    for number, content in enumerate(sections):
        struct.pack_into("<2Q", header, 136 + 16 * number, 256 + len(body), len(content))
        body += content.ljust(-(-len(content) // 8) * 8, b"\0")
    struct.pack_into("<Q", header, 16, 256 + len(body) + 32)
    return _signed(bytes(header) + body + bytes(32))


def test_what_is_not_right_is_refused(plain, tmp_path):
    device, other = make_device(), make_device(seed=1)
    good = make_task(device)
    files = Files(tmp_path, plain, device, good=good, other=make_task(other), cut=good[:-9])
    installed = files.install(tmp_path / "good.edge")

    def refused(task, base=files.base):
        return files.fails("install", base, files.manifest, task, files.model)

    assert "another base" in refused(tmp_path / "other.edge")
    assert "damaged" in refused(tmp_path / "cut.edge")
    assert "no task of version 1" in refused(files.write("bad", _signed(good, at8=4)))
    assert "a number of classes" in refused(files.write("bad", _signed(good, at28=0)))
    assert "no task of version 1" in refused(files.manifest)
    assert "No such file" in refused(tmp_path / "missing.edge")
    wrong_base = tmp_path / "wrong.tflite"
    wrong_base.write_bytes(bytes([device.base[0] ^ 1]) + device.base[1:])
    assert "its SHA-256 is another" in refused(tmp_path / "good.edge", wrong_base)
    wrong_base.write_bytes(device.base[1:])
    assert "not of the size" in refused(tmp_path / "good.edge", wrong_base)
    assert "its SHA-256 is another" in files.fails("verify", _flipped(wrong_base, device.base), files.manifest)
    assert "No such file" in files.fails("install", files.base, files.manifest, tmp_path / "good.edge", "/missing/m")
    for target in (files.base, _link(tmp_path / "link", files.base)):
        for command, *read in (("install", tmp_path / "good.edge"), ("remove",)):
            message = files.fails(command, files.base, files.manifest, *read, target)
            assert "is read and never written to" in message
    for target in (files.manifest, tmp_path / "good.edge"):
        message = files.fails("install", files.base, files.manifest, tmp_path / "good.edge", target)
        assert "is read and never written to" in message
    other = files.write("another", good)
    assert "is there already, and is no model" in files.fails(
        "install", files.base, files.manifest, tmp_path / "good.edge", other
    )
    assert other.read_bytes() == good
    assert "not this base with a task" in files.fails(
        "remove", files.base, files.manifest, _flipped(wrong_base, installed)
    )
    assert files.model.read_bytes() == installed and files.base.read_bytes() == device.base
    assert not list(tmp_path.glob("*.tmp"))
    assert files.run("verify", files.base, files.manifest, tmp_path / "good.edge").returncode == 0


def _flipped(path, data):
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    return path


def _link(path, target):
    path.symlink_to(target)
    return path


def test_only_files_of_its_own_are_written(plain, tmp_path):
    device = make_device()
    files = Files(tmp_path, plain, device, good=make_task(device))
    arguments = ("install", files.base, files.manifest, tmp_path / "good.edge", files.model)
    for make in (Path.mkdir, os.mkfifo):
        make(files.model)
        before = files.model.stat()
        assert "what is there is no file" in files.fails(*arguments)
        assert os.path.samestat(files.model.stat(), before)
        files.model.rmdir() if files.model.is_dir() else files.model.unlink()
    for read in (files.base, files.manifest, tmp_path / "good.edge"):
        temporary = files.model.with_name("m.tflite.tmp")
        temporary.hardlink_to(read)
        assert f"'{temporary}' is read and never written to" in files.fails(*arguments)
        temporary.unlink()
    assert files.base.read_bytes() == device.base and not files.model.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_an_answer_that_cannot_be_written_is_none(plain, tmp_path):
    device = make_device()
    files = Files(tmp_path, plain, device, task=make_task(device))
    task, patcher = tmp_path / "task.edge", SOURCE.parent / "piggyback_edge.py"
    for command, said in (
        ([files.program, "inspect", files.manifest, task], "The output cannot be written."),
        ([sys.executable, patcher, "inspect", files.base, task], "No space left on device"),
    ):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert done.stderr.startswith("piggyback_edge: ")
        assert said in done.stderr


@pytest.mark.parametrize("max_classes", [0, 5])
def test_inspect_and_classify(max_classes, plain, tmp_path):
    device = make_device(max_classes=max_classes)
    task = make_task(device, compress=True)
    files = Files(tmp_path, plain, device, task=task)
    text = files.run("inspect", files.manifest, tmp_path / "task.edge").stdout
    said, expected = json.loads(text), Task.from_bytes(task, device.manifest)
    assert text.isascii() and text.replace("\n", "").isprintable()
    assert said["class_names"] == list(expected.labels) and said["task"] == expected.name
    assert said["eval_augment"] == expected.augment and said["base_bytes"] == len(device.base)
    output = np.random.default_rng(0).standard_normal(max_classes or FEATURES).astype(np.float32)
    model = files.install(tmp_path / "task.edge")
    command = ("classify", files.manifest, tmp_path / "task.edge", files.model)
    lines = files.run(*command, *output.tolist()).stdout.splitlines()
    chances, labels = zip(*(line.split(" ", 1) for line in lines), strict=True)
    np.testing.assert_allclose(np.array(chances, float), expected.probabilities(output[None], model)[0], rtol=1e-5)
    assert tuple(map(json.loads, labels)) == expected.labels
    assert "finite numbers" in files.fails(*command, 1, 2)
    assert "finite numbers" in files.fails(*command, *["nan"] * output.size)


@pytest.mark.parametrize("max_classes", [0, 5])
def test_a_model_says_which_task_is_on_it(max_classes, plain, tmp_path):
    device = make_device(max_classes=max_classes)
    files = Files(tmp_path, plain, device, a=make_task(device, seed=1), b=make_task(device, seed=2))
    a, b, output = tmp_path / "a.edge", tmp_path / "b.edge", ["0.5"] * (max_classes or FEATURES)
    files.write("packed", make_task(device, seed=1, compress=True))
    digest = Task.load(a, device.manifest).digest
    assert digest != Task.load(b, device.manifest).digest

    def installed(*tasks):
        return files.run("installed", files.manifest, files.model, *tasks).stdout.split()

    done = files.run("install", files.base, files.manifest, a, files.model)
    # The cache is named as the Python patcher names it.
    assert done.stdout == f"{weight_cache(files.model, digest)}\n"
    assert installed(b, a) == [digest.hex(), str(a)]
    assert files.run("classify", files.manifest, a, files.model, *output).returncode == 0
    # Compressed, it is the same task.
    assert files.run("classify", files.manifest, tmp_path / "packed.edge", files.model, *output).returncode == 0
    for wrong in (files.base, files.manifest):
        assert "not the one on the model" in files.fails("classify", files.manifest, a, wrong, *output)
    assert "not the one on the model" in files.fails("classify", files.manifest, b, files.model, *output)
    files.install(b)
    assert "not the one on the model" in files.fails("classify", files.manifest, a, files.model, *output)
    assert installed(a) == [Task.load(b, device.manifest).digest.hex()]
    files.run("remove", files.base, files.manifest, files.model)
    assert installed(a, b) == ["none"]


def test_a_base_of_version_1(plain, tmp_path):
    """It was exported before models said which task is on them."""
    device = make_device(version=1)
    task = make_task(device)
    files = Files(tmp_path, plain, device, task=task)
    assert files.manifest.read_bytes()[8] == 1
    assert files.install(tmp_path / "task.edge") == device.installed(task)
    assert "does not say" in files.fails("installed", files.manifest, files.model)
    command = ("classify", files.manifest, tmp_path / "task.edge", files.model, *["0.5"] * FEATURES)
    assert files.run(*command).returncode == 0
    # A place in version 1, none in version 2, and places that cannot be.
    new = make_device().content()
    for change in ({"at8": 1}, {"at112": 0}, {"at112": 2**31}, {"at116": 1}, {"at112": 64}, {"at8": 3}):
        files.manifest.write_bytes(_signed(new, **change))
        message = files.fails("inspect", files.manifest, tmp_path / "task.edge")
        assert message.startswith(("piggyback_edge: The manifest", "piggyback_edge: This is no manifest")), change
        with pytest.raises(EdgeError):
            Manifest.from_bytes(_signed(new, **change))


def _fuzz(build, folder, runs, seed):
    """Returns how often what was said of damaged files of all kinds."""
    said = {}
    for number, (quantize, max_classes) in enumerate((("none", 0), ("dynamic", 5))):
        device = make_device(quantize, max_classes, filters=((108, 4, 27), (45, 5, 1), (77, 7, 11), (1, 1, 1)))
        kinds = ((False, False, False), (True, True, False), (False, True, True), (True, True, True))
        tasks = {f"t{i}": make_task(device, *kind, seed=i) for i, kind in enumerate(kinds)}
        files = Files(folder, build, device, **tasks)
        program = [build / "piggyback_edge_fuzz", runs, seed + number, files.base, files.manifest]
        command = [str(each) for each in (*program, *(folder / f"{name}.edge" for name in tasks))]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
        for line in done.stdout.splitlines():
            times, text = line.split(" ", 1)
            said[text] = said.get(text, 0) + int(times)
    return said


def test_damaged_files_under_sanitizers(sanitized, tmp_path):
    said = _fuzz(sanitized, tmp_path, 1500, seed=0)
    # Nearly every sentence of the library is said, so that no check stands before all others.
    assert len(said) > 20, said
    assert said.pop("accepted") > 100
    assert sum(said.values()) > 1000


@pytest.mark.slow
def test_many_damaged_files_under_sanitizers(sanitized, tmp_path):
    assert len(_fuzz(sanitized, tmp_path, 30_000, seed=100)) > 22


def test_commands_under_sanitizers(sanitized, tmp_path):
    device = make_device("float16", 5)
    files = Files(tmp_path, sanitized, device, task=make_task(device, True, True, True))
    files.install(tmp_path / "task.edge")
    assert files.run("verify", files.base, files.manifest, tmp_path / "task.edge").returncode == 0
    assert files.run("inspect", files.manifest, tmp_path / "task.edge").returncode == 0
    assert files.run("remove", files.base, files.manifest, files.model).returncode == 0


def test_installers_that_are_killed(plain, tmp_path):
    device = make_device(filters=((300_000, 1, 300_000),))
    files = Files(tmp_path, plain, device, a=make_task(device, seed=1), b=make_task(device, seed=2))
    names = {device.installed((tmp_path / f"{task}.edge").read_bytes()): task for task in "ab"}
    start = time.perf_counter()
    files.install(tmp_path / "a.edge")
    # How long it takes, which follows what is seen: on a busy machine times change.
    duration, rng = time.perf_counter() - start, random.Random(0)
    found, killed, left = ["a"], 0, 0
    attempts = 0
    while killed < KILLS:
        task = "ab"[attempts % 2]
        attempts += 1
        assert attempts < 20 * KILLS, "installers are hardly ever killed"
        command = [files.program, "install", files.base, files.manifest, tmp_path / f"{task}.edge", files.model]
        process = subprocess.Popen(command)
        # Within the time that it takes, rather near its end, where it writes.
        time.sleep(rng.uniform(0.2, 1.1) * duration)
        process.send_signal(signal.SIGKILL)
        in_time = process.wait() == -signal.SIGKILL
        killed += in_time
        duration *= 1.05 if in_time else 0.9
        found.append(names[files.model.read_bytes()])
        left += files.model.with_name("m.tflite.tmp").exists()
        assert files.base.read_bytes() == device.base
    assert sum(a != b for a, b in itertools.pairwise(found)) > 5, "installers got as far as to replace the file"
    assert left, "installers were killed before they did"
    # The file that they left is used again, and another process that holds it is respected.
    assert names[files.install(tmp_path / "b.edge")] == "b"
    assert {path.name for path in tmp_path.iterdir()} == {"base.tflite", "manifest.bin", "m.tflite", "a.edge", "b.edge"}


def test_two_processes_do_not_write_the_same_file(plain, tmp_path):
    device = make_device()
    files = Files(tmp_path, plain, device, task=make_task(device))
    with files.model.with_name("m.tflite.tmp").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        message = files.fails("install", files.base, files.manifest, tmp_path / "task.edge", files.model)
    assert "another process does" in message
    files.install(tmp_path / "task.edge")


def test_the_library_has_no_more_than_685_lines():
    """A hundred of them read compositions of filters and make filters of them. Boxes and label maps have their own."""
    assert sum(len((SOURCE / f"piggyback_edge.{end}").read_text().splitlines()) for end in ("h", "cc")) <= 685


def test_a_full_disk_leaves_the_old_model(plain, tmp_path):
    device = make_device()
    files = Files(tmp_path, plain, device, a=make_task(device, seed=1), b=make_task(device, seed=2))
    old = files.install(tmp_path / "a.edge")
    command = f"ulimit -f 0; trap '' XFSZ; exec {files.program} install base.tflite manifest.bin b.edge m.tflite"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "File too large" in done.stderr
    assert files.model.read_bytes() == old and not list(tmp_path.glob("*.tmp"))


@pytest.mark.usefixtures("plain")
def test_warnings_are_errors_only_for_those_who_ask(tmp_path):
    command = ["cmake", "-S", SOURCE, "-B", tmp_path, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    for option, wanted in (("OFF", False), ("ON", True)):
        options = [] if option == "OFF" else ["-DPIGGYBACK_EDGE_WERROR=ON"]
        assert subprocess.run([*command, *options], capture_output=True).returncode == 0
        for entry in json.loads((tmp_path / "compile_commands.json").read_text()):
            assert ("-Werror" in entry["command"]) == wanted
            assert "-Wall" in entry["command"]
