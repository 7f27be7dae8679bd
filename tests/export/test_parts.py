"""Tasks that change their base in other ways than by masks, beside tasks with masks, on one server."""

import functools
import json

import numpy as np
import pytest
import tensorflow as tf

from export.deployment.sent_pack import SentPack, SentPackError
from export.saved_model import add_tasks, export_saved_model
from export.servable.compare import compare
from export.servable.options import ExportOptions
from export.servable.part_tables import PART_ARRAYS
from export.servable.read import read_export
from export.servable.unpacked_kernels import memory_needed
from export.shared.errors import ExportError
from piggyback_tf.packs import TaskBank
from tests.export.helpers import call, encode, picture, texts
from tests.export.parts import IMAGES, SIZE, WAYS, base_and_tasks
from tests.packs.helpers import renamed, with_arrays

NAMES = list(WAYS)


@pytest.fixture(scope="module", name="tasks")
def _tasks():
    return base_and_tasks()


@pytest.fixture(scope="module", name="alone")
def _alone(tasks, tmp_path_factory):
    """An export of the task that has masks and nothing else."""
    folder = tmp_path_factory.mktemp("alone")
    return export_saved_model(tasks.backbone, [tasks.packs["plain"]], folder, ExportOptions(cache="packed"))


@pytest.fixture(scope="module", name="served")
def _served(tasks, alone, tmp_path_factory):
    """A function that returns that export with all others added, by the way that kernels are kept."""

    @functools.cache
    def make(cache="packed"):
        folder, packs = tmp_path_factory.mktemp("parts"), list(tasks.packs.values())
        return add_tasks(alone, packs[1:], folder, cache=cache)

    return make


def _answers(folder, loader="v2", images=IMAGES):
    names = np.repeat(NAMES, len(images))
    request = {"images": np.concatenate([images] * len(NAMES)), "task": texts(*names)}
    (answer,) = call(loader, folder, [("by_name", request)])
    assert answer["task_ok"].all()
    return answer["probabilities"].reshape(len(NAMES), len(images), -1)


# A process of its own takes seconds.
@pytest.mark.parametrize("loader", ["v2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("v1", "c_api"))])
def test_all_tasks_in_one_request(tasks, served, loader):
    """The packed kernels by each loader, which makes of a condition in a graph what it likes."""
    found = _answers(served(), loader)
    expected = np.stack([tasks.bank.predict(IMAGES, name) for name in NAMES])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # No task answers as another one does.
    assert min(np.abs(a - b).max() for i, a in enumerate(expected) for b in expected[:i]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("loader", ["v2", "c_api"])
def test_unpacked_kernels_are_those_that_are_made_in_a_call(served, loader):
    np.testing.assert_allclose(_answers(served("unpacked"), loader), _answers(served()), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_verify_covers_them(tasks, served, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encode(picture(SIZE, SIZE), "PNG"))
    model = tf.saved_model.load(str(served()))
    assert all(compare(model, tasks.bank, name, [path]).good for name in NAMES)
    # Another task under the name of one is found.
    bank = TaskBank(tasks.backbone).add(renamed(tasks.packs["scales"], "low_rank"))
    assert not compare(model, bank, "low_rank", [path]).good


def test_an_export_holds_what_its_tasks_have_and_no_more(tasks, served, alone):
    _, tables, _ = read_export(served())
    kernels = {
        name: sum(v.size for k, v in pack.parts.items() if "vector" not in k) for name, pack in tasks.packs.items()
    }
    affine = sum(key.startswith("affine") for pack in tasks.packs.values() for key in pack.parts)
    # Of an affine mask there are six numbers in the place of four.
    assert tables.parts.parts.size == sum(kernels.values()) + 2 * affine
    assert (tables.parts.part_row >= 0).tolist() == [kernels[name] > 0 for name in NAMES]
    assert (tables.parts.vector_row > 0).tolist() == ["vector" in roles for _, roles in WAYS.values()]
    # One row of masks serves all tasks that have none.
    rows = dict(zip(NAMES, tables.keep_row.tolist(), strict=True))
    assert rows["low_rank"] == rows["scales"] == rows["biases"]
    assert len(tables.planes) == 1 + sum({"none": 0, "binary": 1, "ternary": 2}[kind] for kind, _ in WAYS.values())
    assert memory_needed(read_export(served())[0].layout, tables)["packed"] > tables.parts.parts.nbytes
    description = json.loads((served() / "assets/export.json").read_text())
    assert description["format"] == 3
    assert description["tasks"][1]["parts"] == {"low rank": kernels["low_rank"]}
    assert "parts" not in description["tasks"][0]
    _, tables, _ = read_export(alone)
    assert tables.parts is None and not tables.arrays().keys() & PART_ARRAYS.keys()
    assert json.loads((alone / "assets/export.json").read_text())["format"] == 1
    names = [name for name, _ in tf.train.list_variables(str(alone / "variables" / "variables"))]
    assert not [name for name in names if name.split("/")[0] in PART_ARRAYS]


def test_a_plain_task_is_made_by_the_same_operations(served, alone):
    """Beside others it answers bit for bit as alone."""
    request = {"images": IMAGES, "task": texts(*["plain"] * len(IMAGES))}
    found, beside = (call("v2", folder, [("by_name", request)])[0] for folder in (alone, served()))
    np.testing.assert_array_equal(found["probabilities"], beside["probabilities"])


def test_what_an_export_cannot_hold_is_refused(tasks, served, tmp_path):
    path = tmp_path / "pack"
    tasks.packs["low_rank"].save(path)
    with pytest.raises(
        SentPackError, match="'low_rank' changes its base by more than a mask and batch norm: by low rank"
    ):
        SentPack(str(path), str(served()))
    gamma = {"vector/first_norm/gamma": np.ones(32, "float32")}
    with pytest.raises(Exception, match="variable of batch norm"):
        add_tasks(served(), [with_arrays(tasks.packs["biases"], parts=gamma)])


def test_a_constant_of_all_tasks_is_no_part_of_one(tasks, monkeypatch, tmp_path):
    """A vector that is not float32 is a constant of the graph."""
    from export.servable import layout

    real = layout.WeightLayout.of

    def without_a_bias(backbone):
        parts = real(backbone).to_json()
        del parts["rest"]["fc/bias"]
        return layout.WeightLayout.from_json(parts)

    monkeypatch.setattr(layout.WeightLayout, "of", without_a_bias)
    with pytest.raises(
        ExportError, match="'biases' changes 'fc/bias', which is not float32, or of a kind that exports"
    ):
        export_saved_model(tasks.backbone, [tasks.packs["biases"]], tmp_path / "served")
