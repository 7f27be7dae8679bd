"""Tasks that change their base in other ways than by masks, beside tasks with masks, on a device."""

import functools
import types

import numpy as np
import pytest

from export.edge.piggyback_edge import Base, Model, Task
from export.lite import plain
from export.lite.compare import compare_lite, enter_task, open_export
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.checks import check_constants
from export.lite.patch.write import add_patches, read_base
from export.lite.write import export_litert
from export.shared.errors import ExportError
from tests.export.helpers import encode, picture
from tests.export.lite.conftest import noise
from tests.export.parts import IMAGES, SIZE, WAYS, base_and_tasks
from tests.packs.helpers import renamed, with_arrays

# The first is of the version of tasks that older patchers read.
OLD_FILES = ("plain", "biases", "scales")


@pytest.fixture(scope="module", name="made")
def _made(tmp_path_factory):
    """A function of a quantisation and of a design that returns an export of all tasks, which is made once."""
    found = base_and_tasks()

    @functools.cache
    def make(quantize, design="patch"):
        folder = tmp_path_factory.mktemp("parts") / quantize
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(quantize=quantize, design=design, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            for module in (write, plain):
                patches.setattr(
                    module, "representative_images", lambda spec, packs, count: [noise(SIZE, 16) for _ in packs]
                )
            export_litert(found.backbone, list(found.packs.values()), folder, options)
        return types.SimpleNamespace(folder=folder, **vars(found))

    return make


def _found(export, pack):
    enter_task(export, pack)
    return np.stack([export.answer(image.astype("float32")).found for image in IMAGES])


# By how much answers differ: of integers this is what their roundings do.
LIMITS = {"none": 1e-5, "float16": 5e-3, "dynamic": 0.05, "int8": 0.12}


@pytest.mark.parametrize(
    "quantize", ["none", *(pytest.param(each, marks=pytest.mark.slow) for each in ("float16", "dynamic", "int8"))]
)
def test_a_device_answers_as_the_bank(made, quantize):
    made = made(quantize)
    export = open_export(made.folder / "base.tflite", made.backbone)
    for name, pack in made.packs.items():
        expected = made.bank.predict(IMAGES, name)
        np.testing.assert_allclose(_found(export, pack), expected, rtol=0, atol=LIMITS[quantize], err_msg=name)
    base = Base.load(made.folder / "base.tflite")
    tasks = {name: Task.load(made.folder / f"{name}.edge", base.manifest) for name in WAYS}
    assert {name for name, task in tasks.items() if task.version == 1} == set(OLD_FILES)
    assert {task.version for name, task in tasks.items() if name not in OLD_FILES} == {3}
    # A plain task leaves every constant but its filters as it is.
    assert not tasks["plain"].new_bytes and not tasks["plain"].ratios
    # What is installed over something else is what is installed on the base.
    model, alone = Model(base), Model(base)
    model.install(tasks["all"])
    model.install(tasks["low_rank"])
    alone.install(tasks["low_rank"])
    assert model.data == alone.data


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_model_of_each_task_alone(made, quantize):
    made = made(quantize, "plain")
    for name, pack in made.packs.items():
        export = open_export(made.folder / f"{name}.tflite", made.backbone)
        expected = made.bank.predict(IMAGES, name)
        np.testing.assert_allclose(_found(export, pack), expected, rtol=0, atol=LIMITS[quantize], err_msg=name)


def test_verify_covers_them(made, tmp_path):
    made = made("none")
    path = tmp_path / "image.png"
    path.write_bytes(encode(picture(SIZE, SIZE), "PNG"))
    export = open_export(made.folder / "base.tflite", made.backbone)
    assert compare_lite(export, made.bank, made.packs["all"], [path]).good


@pytest.mark.slow
def test_a_wrong_constant_is_found(made):
    """Each constant is compared, whatever it is made of."""
    made = made("int8")
    base = read_base(made.backbone, made.folder / "base.tflite")
    pack = made.packs["all"]
    device = Base(bytes(base.file.data), base.manifest)
    model = Model(device)
    model.install(Task.load(made.folder / "all.edge", base.manifest))
    check_constants(base, model.data, pack, model.task.compositions)
    for place in model.task.compositions:
        entry = base.manifest.entries[place]
        old = bytes(model.data[entry.offset : entry.offset + entry.nbytes])
        wrong = (np.frombuffer(old, np.int8).astype(int) // 2).astype(np.int8)
        model.data[entry.offset : entry.offset + entry.nbytes] = wrong.tobytes()
        with pytest.raises(ExportError, match="of task 'all' is another one on the converted base"):
            check_constants(base, model.data, pack, model.task.compositions)
        model.data[entry.offset : entry.offset + entry.nbytes] = old


@pytest.mark.slow
def test_tasks_are_added_where_the_base_has_a_place_for_them(made, tmp_path):
    made, folder = made("none"), tmp_path / "device"
    export_litert(made.backbone, [made.packs["plain"]], folder, LiteOptions())
    entries = Base.load(folder / "base.tflite").manifest.entries
    more = [each for each in Base.load(made.folder / "base.tflite").manifest.entries if each not in entries]
    assert more, "the base of tasks with vectors has more entries than one of masks"
    # In float32 a filter is made of anything.
    low_rank = renamed(made.packs["low_rank"], "more")
    (added,) = add_patches(made.backbone, [low_rank], folder / "base.tflite", None, LiteOptions())
    assert added.path.is_file()
    with pytest.raises(ExportError, match="'biases' has its own 'conv/bias', which is the same for all tasks on this"):
        add_patches(made.backbone, [made.packs["biases"]], folder / "base.tflite", None, LiteOptions())
    # The base that was made with such tasks has a place for more of them.
    (added,) = add_patches(
        made.backbone, [renamed(made.packs["all"], "again")], made.folder / "base.tflite", tmp_path, LiteOptions()
    )
    assert added.path.is_file()


@pytest.mark.parametrize("design", ["switch", "input"])
def test_designs_with_masks_as_inputs_refuse_them(made, tmp_path, design):
    made = made("none")
    with pytest.raises(ExportError, match="'low_rank', .* has low rank of its own. The designs switch and input take"):
        export_litert(made.backbone, [made.packs["low_rank"]], tmp_path / "device", LiteOptions(design=design))


@pytest.mark.slow
def test_scales_of_inputs_are_refused(made, tmp_path):
    made = made("none")
    scale = {"scale/conv/kernel": np.full((1, 1, 3, 1), 1.5, np.float32)}
    pack = with_arrays(made.packs["low_rank"], parts=scale)
    with pytest.raises(ExportError, match="scales 'conv/kernel' by other channels than those of its output"):
        export_litert(made.backbone, [pack], tmp_path / "device", LiteOptions())
    export_litert(made.backbone, [pack], tmp_path / "plain", LiteOptions(design="plain"))
