"""Models that take masks as inputs: both designs, both runtimes, and what belongs to a model and its files."""

import dataclasses
import json
import threading
import time
import types
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from export.lite.inputs.run import RUNTIMES, StatelessModel, SwitchModel
from export.lite.inputs.task_inputs import METADATA_KEY, TaskInputs
from export.lite.inputs.write import add_inputs, export_inputs
from export.lite.model_description import DESCRIPTION, read_model_description
from export.lite.options import LiteOptions
from export.shared.errors import ExportError
from piggyback_tf.packs import PackError, TaskBank
from tests.packs.helpers import pack_of, packs_of_all_kinds, renamed, small_backbone, trained_model

DESIGNS = {"switch": SwitchModel, "input": StatelessModel}
IMAGES = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module", name="small")
def _small(tmp_path_factory):
    """A base, packs of every kind, a bank with them, and an export of each design."""
    backbone = small_backbone()
    packs, bank = packs_of_all_kinds(backbone), TaskBank(backbone)
    for pack in packs:
        bank.add(pack)
    folders = {design: tmp_path_factory.mktemp(design) for design in DESIGNS}
    for design, folder in folders.items():
        export_inputs(backbone, packs, folder, LiteOptions(design=design, max_classes=9))
    return types.SimpleNamespace(backbone=backbone, packs=packs, bank=bank, **folders)


def _model(folder, design, **options):
    return DESIGNS[design](folder / "model.tflite", **options)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("design", DESIGNS)
def test_agrees_with_the_bank(small, design, runtime):
    folder = getattr(small, design)
    model = _model(folder, design, runtime=runtime)
    # Back to the first at the end: nothing of another task may stay behind.
    for pack in (*small.packs, small.packs[0]):
        model.set_task(folder / f"{pack.task}.inputs.safetensors")
        assert model.labels == pack.class_names
        np.testing.assert_allclose(model.predict(IMAGES), small.bank.predict(IMAGES, task=pack.task), atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("design", DESIGNS)
def test_impossible_pixels_are_flagged_by_the_model_and_refused_before_it(small, design, runtime):
    folder, pack = getattr(small, design), small.packs[0]
    model, good = _model(folder, design, runtime=runtime), IMAGES[:1].astype("float32")
    task = TaskInputs.load(folder / f"{pack.task}.inputs.safetensors")
    model.set_task(task)
    for value in (np.nan, -1, 255.5, np.inf):
        image = good.copy()
        image[0, 3, 4, 1] = value
        # As a program without this package calls it.
        assert not model._answer(task, image).any()
        with pytest.raises(ValueError, match=r"must hold values in \[0, 255\]"):
            model.predict(image)
    for image in (good / 255, good / 127.5 - 1, good.astype(np.int64) - 300):
        with pytest.raises(ValueError, match=r"must hold values in \[0, 255\]"):
            model.predict(image)
    np.testing.assert_allclose(model._answer(task, good).sum(), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("design", "only"), [("switch", "some_layers"), ("input", "binary"), ("input", "classifier_only")]
)
def test_what_no_task_changes_is_constant(small, tmp_path, design, only):
    pack = next(pack for pack in small.packs if pack.task == only)
    options = LiteOptions(design=design, quantize="float16")
    model_file, inputs = export_inputs(small.backbone, [pack], tmp_path, options)
    arrays = load_file(inputs)
    assert set(arrays) == ({"mask", "head", "bias"} if pack.masks else {"head", "bias"})
    assert arrays["bias"].shape == (len(pack.class_names),)
    assert {path for path, _ in read_model_description(model_file)["layout"]["filters"]} == set(pack.masks)
    model = _model(tmp_path, design)
    model.set_task(inputs)
    np.testing.assert_allclose(model.predict(IMAGES), small.bank.predict(IMAGES, task=only), atol=1e-3)


@pytest.mark.parametrize("design", DESIGNS)
def test_only_builtin_operators_and_each_kernel_once(small, design):
    folder = getattr(small, design)
    interpreter = Interpreter(model_path=str(folder / "model.tflite"))
    interpreter.allocate_tensors()
    operators = {operator["op_name"] for operator in interpreter._get_ops_details()}
    assert not [name for name in operators if name.startswith("Flex") or "CUSTOM" in name]
    signatures = interpreter.get_signature_list()
    task = ["bias", "head", "mask", "norm"]
    expected = {"switch": {"set_task": task, "predict": ["images"]}, "input": {"predict": sorted([*task, "images"])}}
    assert {name: sorted(found["inputs"]) for name, found in signatures.items()} == expected[design]
    data = (folder / "model.tflite").read_bytes()
    kernel = small.backbone.model.get_layer("fc").kernel.numpy()
    assert data.count(kernel.tobytes()) == 1


def test_a_task_is_set_whole_or_not(small):
    model = _model(small.switch, "switch")
    with pytest.raises(ValueError, match="call set_task first"):
        model.predict(IMAGES)
    raw = Interpreter(model_path=str(small.switch / "model.tflite"))
    predict, set_task = raw.get_signature_runner("predict"), raw.get_signature_runner("set_task")
    # Before any task, all classes are equally probable.
    np.testing.assert_allclose(predict(images=np.float32(IMAGES[:1]))["probabilities"], 1 / 9)
    inputs = TaskInputs.load(small.switch / "binary.inputs.safetensors")
    assert set_task(**inputs.arrays)["classes"].tolist() == [2]
    assert not predict(images=np.float32(IMAGES[:1]))["probabilities"][0, 2:].any()


def test_the_file_of_a_task(small, tmp_path):
    path, pack = small.switch / "ternary.inputs.safetensors", small.packs[1]
    with safe_open(path, "numpy") as stream:
        description = json.loads(stream.metadata()[METADATA_KEY])
    assert description["labels"] == pack.class_names
    assert description["base"]["hash"] == small.backbone.hash
    arrays = load_file(path)
    arrays["mask"][0] ^= 1
    save_file(arrays, tmp_path / "a", {METADATA_KEY: json.dumps(description)})
    with pytest.raises(PackError, match="damaged: its mask"):
        TaskInputs.load(tmp_path / "a")
    (tmp_path / "a").write_bytes(path.read_bytes()[:100])
    with pytest.raises(PackError, match="is no file of a task's inputs"):
        TaskInputs.load(tmp_path / "a")


@pytest.mark.parametrize("damage", ["no object", "encrypted", "compressed"])
def test_a_damaged_description_of_a_model(small, tmp_path, damage):
    path = tmp_path / "model.tflite"
    if damage == "no object":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(DESCRIPTION, "[]")
    else:
        data = bytearray((small.switch / "model.tflite").read_bytes())
        # In the archive's list of files: flags, and the kind of compression.
        data[data.rindex(b"PK\1\2") + (8 if damage == "encrypted" else 10)] = 1
        path.write_bytes(data)
    with pytest.raises(PackError, match="and no model that says what it is"):
        read_model_description(path)


def test_equal_exports_give_equal_files_of_tasks(small, tmp_path):
    files = export_inputs(small.backbone, small.packs, tmp_path, LiteOptions(design="input", max_classes=9))
    for path in files[1:]:
        assert path.read_bytes() == (small.input / path.name).read_bytes()
    # A task's file fits a model of either design.
    assert read_model_description(files[0])["digest"] == read_model_description(small.switch / "model.tflite")["digest"]


def test_tasks_are_added_to_a_model(small, tmp_path):
    backbone, (binary, ternary, norm) = small.backbone, small.packs[:3]
    folder = tmp_path / "switch"
    export_inputs(backbone, [binary], folder, LiteOptions(design="switch", max_classes=4))
    before = (folder / "model.tflite").read_bytes()
    new = renamed(pack_of(trained_model(backbone, classes=4, seed=9), backbone, classes=4), "new")
    [path] = add_inputs(backbone, [new], folder / "model.tflite", tmp_path / "new")
    assert path.parent == tmp_path / "new"
    model = _model(folder, "switch")
    model.set_task(path)
    expected = small.bank.add(new).predict(IMAGES, task="new")
    small.bank.remove("new")
    np.testing.assert_allclose(model.predict(IMAGES), expected, atol=1e-6)
    assert (folder / "model.tflite").read_bytes() == before
    for pack, reason in ((ternary, "ternary masks"), (norm, "batch norm"), (small.packs[4], "room for 4")):
        with pytest.raises(PackError, match=reason):
            add_inputs(backbone, [pack], folder / "model.tflite")
    other = small_backbone(seed=1)
    with pytest.raises(PackError, match=r"model.tflite' was made of another base: hash \w{12}\.\.\., and this is"):
        add_inputs(other, [pack_of(trained_model(other), other)], folder / "model.tflite")
    with pytest.raises(PackError, match="Task 'new' was trained on another base"):
        add_inputs(other, [new], folder / "model.tflite")
    # The same task may be written again, another one of its name may not.
    inputs = folder / "binary.inputs.safetensors"
    kept = inputs.read_bytes()
    assert add_inputs(backbone, [binary], folder / "model.tflite") == [inputs]
    with pytest.raises(ExportError, match="is there already and holds another task of this name"):
        add_inputs(backbone, [new, renamed(new, "binary")], folder / "model.tflite")
    assert inputs.read_bytes() == kept
    assert {path.name for path in folder.iterdir()} == {"model.tflite", "binary.inputs.safetensors"}


def test_refusals(small, tmp_path):
    backbone, packs = small.backbone, small.packs
    with pytest.raises(ExportError, match="at least one task"):
        export_inputs(backbone, [], tmp_path, LiteOptions(design="switch"))
    with pytest.raises(PackError, match="two tasks named"):
        export_inputs(backbone, [packs[0], packs[0]], tmp_path, LiteOptions(design="switch"))
    with pytest.raises(PackError, match="3 classes, and the model has room for 2"):
        export_inputs(backbone, packs[:2], tmp_path, LiteOptions(design="switch", max_classes=2))
    with pytest.raises(PackError, match="another base"):
        export_inputs(small_backbone(seed=1), packs, tmp_path, LiteOptions(design="switch"))
    assert not list(tmp_path.iterdir())
    before = {path.name: path.read_bytes() for path in small.switch.iterdir()}
    with pytest.raises(ExportError, match="is there already"):
        export_inputs(backbone, packs[:1], small.switch, LiteOptions(design="switch"))
    assert {path.name: path.read_bytes() for path in small.switch.iterdir()} == before
    with pytest.raises(PackError, match="is of design 'switch', not 'input'"):
        _model(small.switch, "input")
    model = _model(small.switch, "switch")
    other = TaskInputs.load(small.switch / "binary.inputs.safetensors")
    with pytest.raises(PackError, match="made for another model"):
        model.set_task(dataclasses.replace(other, description={**other.description, "layout": ""}))
    with pytest.raises(ValueError, match="no runtime named|runtime"):
        _model(small.switch, "switch", runtime="tflite")
    model.set_task(other)
    with pytest.raises(ValueError, match=r"\[N, 8, 8, 3\]"):
        model.predict(IMAGES[:, :4])
    assert model.predict(IMAGES[:0]).shape == (0, 2)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_model_that_does_not_answer_as_the_bank_is_not_left_behind(tmp_path, design):
    backbone = small_backbone()
    kernel = backbone.model.get_layer("fc").kernel
    kernel.assign(np.where(np.arange(9) == 3, np.nan, kernel.numpy()))
    pack = pack_of(trained_model(backbone), backbone)
    with pytest.raises(ExportError, match="results that are no numbers"):
        export_inputs(backbone, [pack], tmp_path / "out", LiteOptions(design=design))
    assert not list(tmp_path.iterdir())


class _Watched:
    """A runner that takes a while, and notices when two threads are in it."""

    def __init__(self, runner):
        self._runner, self._inside, self.met = runner, 0, False

    def call(self, signature, inputs):
        self._inside += 1
        self.met |= self._inside > 1
        time.sleep(0.002)
        found = self._runner.call(signature, inputs)
        self.met |= self._inside > 1
        self._inside -= 1
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("design", DESIGNS)
def test_threads_wait_for_one_another(small, design, runtime):
    """Whatever task is the current one, an answer is of one task from the first image to the last."""
    folder = getattr(small, design)
    model = _model(folder, design, runtime=runtime)
    tasks = [TaskInputs.load(folder / f"{name}.inputs.safetensors") for name in ("binary", "ternary")]
    expected, wrong = [], []
    for task in tasks:
        model.set_task(task)
        expected.append(model.predict(IMAGES))
    model._runner = watched = _Watched(model._runner)

    def work(task):
        for _ in range(10):
            if task is not None:
                model.set_task(task)
            found = model.predict(IMAGES)
            if not any(np.array_equal(found, each) for each in expected):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(task,)) for task in (*tasks, None, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not watched.met
    assert not wrong
