"""Label maps on devices: at the size that the image had, and the same in Python and C++."""

import hashlib
import json
import subprocess

import numpy as np
import pytest

from export.edge.piggyback_edge import (
    DIGEST,
    Base,
    EdgeError,
    Manifest,
    Model,
    Signature,
    Task,
    at_own_size,
)
from export.lite.patch.manifest import manifest_bytes
from export.lite.patch.task_file import task_bytes
from piggyback_tf.data import at_own_size as usual
from piggyback_tf.data import parse_augment
from piggyback_tf.data.augment import apply_operations
from tests.export.edge.cpp_files import make_device

SHAPE, ROOM = (3, 5), 5
GRAPHS = (Signature("serving_default", (32, 32), 0, 6), Signature("fpn8_3x5", SHAPE, ROOM, 0, 15))
# Of the files below: their formats are read for ever.
GOLDEN = {
    "manifest.bin": "04c6b0d5378e7a135063e4732641914040853e0c62b1b51a9d5c81b7681b1fea",
    "roads.edge": "63c2fea3e204c1ec6467e42831caa3ad23e5d8535da067019f88d5464849e2c6",
}


AUGMENTS = [
    "",
    "resize(40,56)",
    "resize(33)",
    "resize(31)|central_crop(24)",
    "central_crop(20)",
    "resize(50,41)|resize(20,9)",
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_label_map_goes_back_to_the_size_of_the_image(augment):
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(int(side) for side in rng.integers(24, 200, 2))
        operations = parse_augment(augment) if augment else []
        shape = apply_operations(operations, np.zeros((*size, 3), np.uint8)).shape[:2]
        labels = rng.integers(0, 256, shape, dtype=np.uint8)
        assert np.array_equal(at_own_size(labels, augment, size), usual(labels, operations, size))
    with pytest.raises(EdgeError, match="the label map is of"):
        at_own_size(labels[1:], augment, size)


@pytest.fixture(name="device")
def _device():
    """A base of random bytes with two graphs, in the second of which three constants are a head."""
    device = make_device(max_classes=ROOM)
    manifest = device.manifest
    fields = {"features": 0, "max_classes": 0, "image_size": 0, "graphs": GRAPHS}
    return Base(device.base, Manifest(**{**vars(manifest), **fields}))


def make_task(base, **changes):
    """Returns a task that finds label maps, and the content of its file."""
    rng = np.random.default_rng(0)
    entries = base.manifest.entries
    masks = {0: np.packbits(rng.random((1, entries[0].size)) < 0.7, axis=1, bitorder="little")}
    new_bytes = {
        place: rng.standard_normal(entry.size).astype("f4").tobytes()
        for place, entry in enumerate(entries)
        if entry.kind >= 7
    }
    fields = {
        "name": "roads",
        "labels": ("road", "sky", "tüvö"),
        "augment": "resize(3,5)",
        "base_name": "net",
        "preprocessing": "x / 255",
        "flags": 0,
        "masks": masks,
        "ratios": {},
        "new_bytes": new_bytes,
        "kernel": None,
        "bias": None,
        "nbytes": 0,
        "digest": bytes(DIGEST),
        "manifest": base.manifest,
        "graph": 1,
        "answer": "argmax",
        "problem": "map",
        "head_spec": '{"kind": "fpn"}',
    }
    data = task_bytes(Task(**fields | changes), base.manifest)
    return Task.from_bytes(data, base.manifest), data


def sealed(data, place, value):
    """Returns a file with other bytes at a place, and a digest that fits."""
    changed = bytearray(data)
    changed[place : place + len(value)] = value
    changed[-32:] = hashlib.sha256(changed[:-32]).digest()
    return bytes(changed)


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)


def test_files_are_read_for_ever(device):
    content, (task, data) = manifest_bytes(device.manifest), make_task(device)
    assert Manifest.from_bytes(content) == device.manifest
    found = {"manifest.bin": content, "roads.edge": data}
    assert {name: hashlib.sha256(each).hexdigest() for name, each in found.items()} == GOLDEN
    assert (task.signature, task.answer, task.problem, task.head_spec, task.labels[2]) == (
        GRAPHS[1], "argmax", "map", '{"kind": "fpn"}', "tüvö",
    )  # fmt: skip


def test_both_patchers_find_the_same_labels(device, plain, tmp_path):
    task, data = make_task(device)
    model = Model(device)
    model.install(task)
    for name, content in (("base", device.data), ("manifest", manifest_bytes(device.manifest)), ("task", data)):
        (tmp_path / name).write_bytes(content)
    base, manifest, edge, target = (tmp_path / name for name in ("base", "manifest", "task", "model"))
    program = plain / "piggyback_edge"
    assert run(program, "install", base, manifest, edge, target).stderr == ""
    assert target.read_bytes() == model.data
    # Ties among them, and larger numbers where the task has no class.
    output = np.random.default_rng(1).integers(0, 4, (1, *SHAPE, ROOM)).astype("f4")
    output[..., 3:] = 9
    (tmp_path / "output").write_bytes(output.tobytes())
    found = run(program, "labels", manifest, edge, target, tmp_path / "output", tmp_path / "labels")
    assert found.returncode == 0, found.stderr
    labels = np.fromfile(tmp_path / "labels", np.uint8).reshape(1, *SHAPE)
    expected = task.label_maps(output, model.data)
    assert np.array_equal(labels, expected) and len(np.unique(expected)) == 3
    described = json.loads(run(program, "inspect", manifest, edge).stdout)
    assert (described["signature"], described["height"], described["width"]) == ("fpn8_3x5", 3, 5)
    assert (described["answer"], described["problem"], json.loads(described["head"])) == (
        "argmax", "map", {"kind": "fpn"},
    )  # fmt: skip
    assert described["class_names"] == list(task.labels)
    refused = run(program, "labels", manifest, edge, base, tmp_path / "output", tmp_path / "labels")
    assert "not the one on the model" in refused.stderr
    refused = run(program, "classify", manifest, edge, target, *(["1"] * 75))
    assert "answers otherwise" in refused.stderr
    (tmp_path / "output").write_bytes(output.tobytes()[4:])
    refused = run(program, "labels", manifest, edge, target, tmp_path / "output", tmp_path / "labels")
    assert "not as many finite numbers" in refused.stderr


def labels_at_own_size(folder, program, device, augment, shape, size=()):
    """Returns what the C++ patcher says of a random output, and Python's labels of it, in the size of the model."""
    graphs = (GRAPHS[0], Signature("map", shape, ROOM, 0, shape[0] * shape[1]))
    base = Base(device.data, Manifest(**{**vars(device.manifest), "graphs": graphs}))
    task, data = make_task(base, augment=augment)
    model = Model(base)
    model.install(task)
    output = np.random.default_rng(sum(shape)).standard_normal((1, *shape, ROOM)).astype("f4")
    contents = {"manifest": manifest_bytes(base.manifest), "task": data, "model": model.data, "output": output}
    for name, content in contents.items():
        (folder / name).write_bytes(bytes(content))
    files = [folder / name for name in (*contents, "labels")]
    return run(program / "piggyback_edge", "labels", *files, *size), task.label_maps(output, model.data)[0]


@pytest.mark.parametrize(
    "augment", [*AUGMENTS, " resize( size = 40,width=56 ) ", "resize(40, width=56)|central_crop(size=31)"]
)
def test_both_patchers_give_a_label_map_the_size_of_the_image(device, plain, tmp_path, augment):
    rng = np.random.default_rng(1)
    # The second is rounded where the middle is between two numbers; the others are any.
    for size in ((24, 200), (40, 60), *(tuple(map(int, rng.integers(24, 200, 2))) for _ in range(8))):
        operations = parse_augment(augment) if augment else []
        shape = apply_operations(operations, np.zeros((*size, 3), np.uint8)).shape[:2]
        found, labels = labels_at_own_size(tmp_path, plain, device, augment, shape, size)
        assert found.returncode == 0, found.stderr
        expected = at_own_size(labels, augment, size)
        assert np.array_equal(np.fromfile(tmp_path / "labels", np.uint8).reshape(size), expected)
        assert len(np.unique(expected)) == 3


@pytest.mark.parametrize(
    ("augment", "size", "words"),
    [
        ("resize(10,12)", (30,), "two numbers"),
        ("resize(10,12)", (30, 0), "two numbers"),
        ("resize(10,12)", (30, 65536), "two numbers"),
        ("resize(10)", (30, 40), "to another one than that of its label maps"),
        ("central_crop(12)", (11, 40), "or not at all"),
        ("pad(10,12)", (10, 12), "by other steps than"),
        ("resize(10,12)|flip", (30, 40), "by other steps than"),
        ("resize(10,12)resize(10,12)", (30, 40), "by other steps than"),
        ("resize(10,12)|", (30, 40), "by other steps than"),
        ("resize(width=12)", (30, 40), "by other steps than"),
        ("resize(width=12, 10)", (30, 40), "by other steps than"),
        ("resize(10,12,3)", (30, 40), "by other steps than"),
        ("resize(10,size=12)", (30, 40), "by other steps than"),
        ("resize(8193,12)|resize(10,12)", (30, 40), "by other steps than"),
        ("resize(0,12)", (30, 40), "by other steps than"),
        ("central_crop(10,12)", (30, 40), "by other steps than"),
    ],
)
def test_a_size_or_steps_that_cannot_be_are_refused(device, plain, tmp_path, augment, size, words):
    found, _ = labels_at_own_size(tmp_path, plain, device, augment, (10, 12), size)
    assert found.returncode == 2 and words in found.stderr and found.stderr.count("\n") == 1
    assert not (tmp_path / "labels").exists()


def test_both_patchers_take_each_class_by_itself(device, plain, tmp_path):
    kernel, bias = np.random.default_rng(2).normal(0, 9, (6, 3)).astype("f4"), np.array([90, -90, 0.5], "f4")
    changes = {"graph": 0, "answer": "sigmoid", "problem": "multilabel", "kernel": kernel, "bias": bias}
    task, data = make_task(device, **changes, new_bytes={})
    model = Model(device)
    model.install(task)
    for name, content in (("manifest", manifest_bytes(device.manifest)), ("task", data), ("model", model.data)):
        (tmp_path / name).write_bytes(content)
    output = np.array([[1, -2, 0.5, 3, 0, 1]], "f4")
    found = task.probabilities(output, model.data)
    logits = (output @ kernel + bias).astype(np.float64)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), rtol=1e-5, atol=1e-30)
    files = (tmp_path / name for name in ("manifest", "task", "model"))
    lines = run(plain / "piggyback_edge", "classify", *files, *output[0]).stdout.splitlines()
    np.testing.assert_allclose([float(line.split()[0]) for line in lines], found[0], rtol=1e-5, atol=1e-30)
    with pytest.raises(EdgeError, match="of the problem 'multilabel': ask for its probabilities"):
        task.label_maps(output, model.data)


@pytest.mark.parametrize(
    ("of_task", "place", "value"),
    [
        (True, 8, b"\1"),  # Version 1 on a base of several graphs.
        (True, 32, b"\1"),  # Features.
        (True, 36, b"\4"),  # The height.
        (True, 232, b"\4"),  # The width.
        (True, 236, b"\2"),  # A signature that is not there.
        (True, 240, b"\0"),  # Probabilities of many places.
        (True, 240, b"\2"),
        (True, 240, b"\4"),  # An unknown answer.
        (True, 244, b"\1"),
        (False, 8, b"\2"),
        (False, 96, b"\1"),
        (False, 120, b"\0"),
        (False, 120, b"\3"),
        (False, 124, b"\1"),
        (False, -32 - 256, b"\n"),  # The first signature: its name, the same name twice, and its numbers.
        (False, -32 - 256, b"fpn8_3x5\0\0\0\0\0\0\0"),
        (False, -32 - 256, bytes(64)),
        (False, -32 - 256, b"x" * 64),
        (False, -32 - 256 + 64, bytes(4)),
        (False, -32 - 256 + 76, bytes(4)),
        (False, -32 - 256 + 80, b"\2"),
        (False, -32 - 128 + 80, bytes(4)),
        (False, -32 - 128 + 84, b"\1"),
        (False, 128 + 44, b"\2"),  # A constant of no graph.
    ],
)
def test_what_cannot_be_is_refused_by_both(device, plain, tmp_path, of_task, place, value):
    manifest, (_, data) = manifest_bytes(device.manifest), make_task(device)
    place = place if place >= 0 else len(manifest) + place
    (tmp_path / "manifest").write_bytes(manifest if of_task else sealed(manifest, place, value))
    (tmp_path / "task").write_bytes(sealed(data, place, value) if of_task else data)
    with pytest.raises(EdgeError):
        Task.from_bytes((tmp_path / "task").read_bytes(), Manifest.load(tmp_path / "manifest"))
    found = run(plain / "piggyback_edge", "inspect", tmp_path / "manifest", tmp_path / "task")
    assert found.returncode == 2 and found.stderr.count("\n") == 1


def test_damaged_files_under_sanitizers(device, sanitized, tmp_path):
    for name, content in (("base", device.data), ("manifest", manifest_bytes(device.manifest))):
        (tmp_path / name).write_bytes(content)
    tasks = []
    for number, changes in enumerate(({}, {"labels": ("a",), "name": "other"})):
        tasks.append(tmp_path / f"{number}.edge")
        tasks[-1].write_bytes(make_task(device, **changes)[1])
    found = run(sanitized / "piggyback_edge_fuzz", 1500, 0, tmp_path / "base", tmp_path / "manifest", *tasks)
    assert found.returncode == 0, found.stderr
    said = found.stdout
    assert "accepted" in said and "a signature that cannot be" in said and "for other images or features" in said
