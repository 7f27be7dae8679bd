"""Boxes on devices: chosen alike in Python and C++, and in pixels of the image as it was."""

import json

import numpy as np
import pytest

from export.edge import piggyback_edge
from export.edge.piggyback_edge import Base, EdgeError, Manifest, Model, Signature, boxes_at_own_size
from export.lite.patch.manifest import manifest_bytes
from piggyback_tf.data import boxes_at_own_size as usual
from piggyback_tf.data import parse_augment
from piggyback_tf.head_spec import MULTIPLE
from piggyback_tf.problems import box_measures, detection
from tests.export.edge.cpp_files import make_device
from tests.export.edge.test_label_maps import AUGMENTS, ROOM, make_task, run

SHAPE, GRID = (24, 40), (4, 8)
GRAPHS = (Signature("serving_default", (32, 32), 0, 6), Signature("fcos4_24x40", SHAPE, ROOM, 0, 32))


@pytest.fixture(name="device")
def _device():
    """A base of random bytes with two graphs, of which the second says boxes."""
    device = make_device(max_classes=ROOM)
    fields = {"features": 0, "max_classes": 0, "image_size": 0, "graphs": GRAPHS}
    return Base(device.base, Manifest(**{**vars(device.manifest), **fields}))


def boxes_task(base, **changes):
    """Returns a task of boxes, and the content of its file."""
    fields = {"answer": "boxes", "problem": "boxes", "head_spec": '{"kind": "fcos"}', "augment": "resize(24,40)"}
    return make_task(base, **fields | changes)


def points(seed, ties):
    """Returns scores and sides; with `ties` many of both are equal."""
    rng = np.random.default_rng(seed)
    scores, sides = rng.uniform(0, 0.3, (1, *GRID, ROOM)), rng.uniform(1, 20, (1, *GRID, 4))
    if ties:
        scores, sides = np.round(scores * 20) / 20, np.round(sides / 4) * 4
    return scores.astype("f4"), sides.astype("f4")


def test_what_is_chosen_by_is_the_same_everywhere():
    """The patcher has copies, since it needs nothing of this project."""
    assert piggyback_edge.MOST_BOXES == box_measures.MOST and MULTIPLE == piggyback_edge.PADDED_TO
    assert np.float32(detection.LEAST_SCORE) == piggyback_edge.LEAST_SCORE
    assert np.float32(detection.OVERLAP) == piggyback_edge.OVERLAP


@pytest.mark.parametrize("augment", AUGMENTS)
def test_boxes_go_back_to_the_pixels_of_the_image(augment):
    rng = np.random.default_rng(0)
    for _ in range(20):
        size = tuple(int(side) for side in rng.integers(24, 200, 2))
        boxes = np.sort(rng.uniform(0, 20, (5, 2, 2)), axis=1).reshape(5, 4)
        expected = usual(boxes, parse_augment(augment) if augment else [], size)
        np.testing.assert_allclose(boxes_at_own_size(boxes, augment, size), expected, atol=1e-9)
    with pytest.raises(EdgeError, match="here are resize and central_crop"):
        boxes_at_own_size(boxes, "pad(3,4)", size)


def test_both_patchers_choose_the_same_boxes(device, plain, tmp_path):
    task, data = boxes_task(device)
    model = Model(device)
    model.install(task)
    contents = {"base": device.data, "manifest": manifest_bytes(device.manifest), "task": data, "model": model.data}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(bytes(content))
    program, files = plain / "piggyback_edge", [tmp_path / name for name in ("manifest", "task", "model")]

    def ask(scores, sides, rows, files=files):
        for name, numbers in (("scores", scores), ("sides", sides)):
            (tmp_path / name).write_bytes(numbers.tobytes())
        return run(program, "boxes", *files, tmp_path / "scores", tmp_path / "sides", rows)

    for seed in range(6):
        scores, sides = points(seed, ties=seed % 2)
        found = ask(scores, sides, GRID[0])
        assert found.returncode == 0, found.stderr
        rows = [line.split(maxsplit=5) for line in found.stdout.splitlines()]
        (expected,) = task.boxes(scores, sides, model.data)
        expected = expected[expected[:, 4] >= 0]
        numbers = np.array([[float(each) for each in row[:5]] for row in rows], "f4")
        assert np.array_equal(numbers, expected[:, [0, 1, 2, 3, 5]]), "to the last bit"
        assert [json.loads(row[5]) for row in rows] == [task.labels[int(each)] for each in expected[:, 4]]
        assert 20 < len(expected) <= 100
    described = json.loads(run(program, "inspect", *files[:2]).stdout)
    assert (described["answer"], described["problem"], described["places"]) == ("boxes", "boxes", 32)
    assert "not the one on the model" in ask(scores, sides, 4, [*files[:2], tmp_path / "base"]).stderr
    assert "not of so many rows" in ask(scores, sides, 5).stderr
    assert "not as many finite numbers" in ask(scores, np.full_like(sides, np.inf), 4).stderr
    assert "not as many finite numbers" in ask(scores[:, :2], sides[:, :2], 2).stderr
    assert "answers otherwise" in run(program, "classify", *files, *(["1"] * 160)).stderr


def test_more_boxes_than_an_answer_has(device, plain, tmp_path):
    """Of a hundred and more the surest stay, of all classes."""
    graphs = (GRAPHS[0], Signature("fcos4_96x96", (96, 96), ROOM, 0, 144))
    base = Base(device.data, Manifest(**{**vars(device.manifest), "graphs": graphs}))
    task, data = boxes_task(base, augment="resize(96,96)")
    model = Model(base)
    model.install(task)
    rng = np.random.default_rng(0)
    scores = np.round(rng.uniform(0.04, 0.2, (1, 12, 12, ROOM)), 2).astype("f4")
    sides = rng.uniform(1, 4, (1, 12, 12, 4)).astype("f4")
    outputs = {"scores": scores, "sides": sides, "manifest": manifest_bytes(base.manifest), "task": data}
    for name, content in {**outputs, "model": model.data}.items():
        (tmp_path / name).write_bytes(bytes(content))
    files = [tmp_path / name for name in ("manifest", "task", "model", "scores", "sides")]
    found = run(plain / "piggyback_edge", "boxes", *files, 12)
    numbers = np.array([[float(each) for each in line.split()[:5]] for line in found.stdout.splitlines()], "f4")
    (expected,) = task.boxes(scores, sides, model.data)
    assert (expected[:, 4] >= 0).all() and np.array_equal(numbers, expected[:, [0, 1, 2, 3, 5]])


def test_damaged_files_of_boxes_under_sanitizers(device, sanitized, tmp_path):
    for name, content in (("base", device.data), ("manifest", manifest_bytes(device.manifest))):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "a.edge").write_bytes(boxes_task(device)[1])
    found = run(
        sanitized / "piggyback_edge_fuzz", 500, 0, tmp_path / "base", tmp_path / "manifest", tmp_path / "a.edge"
    )
    assert found.returncode == 0, found.stderr
    assert "accepted" in found.stdout
