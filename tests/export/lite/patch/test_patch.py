"""Tasks on a patched base answer as the bank does, whatever its constants are."""

import dataclasses
import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, HardwareAccelerator, Options

from export.edge.piggyback_edge import Base, EdgeError, Model, Task, main, weight_cache
from export.lite.checks import run_model
from export.lite.flatbuffer import LiteFile, pack_objects, read_objects
from export.lite.folder import is_patched
from export.lite.metadata import TASK_NAME
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.manifest import manifest_bytes, manifest_json
from export.lite.patch.patchable import Patchable
from export.lite.patch.tasks import make_task
from export.lite.patch.write import read_base
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.backbones import Backbone, load_backbone, rename_layers
from piggyback_tf.packs import PackError, TaskBank
from tests.export.lite.conftest import noise
from tests.packs.helpers import VARIANTS, pack_of, renamed, small_backbone, trained_model, with_arrays

# The largest difference of a probability, by quantisation. With "dynamic" it is of a larger network in integers, for
# tasks of random batch norm too.
LIMITS = {"none": 1e-6, "float16": 5e-4, "dynamic": 0.1, "int8": 2e-2}


def _run_compiled(data, images):
    model = CompiledModel.from_buffer(bytes(data))
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    results = []
    for image in images:
        inputs[0].write(image[None])
        model.run_by_index(0, inputs, outputs)
        count = model.get_output_buffer_requirements(0, 0)["buffer_size"] // 4
        results.append(np.array(outputs[0].read(count, np.float32)))
    return np.stack(results)


@pytest.mark.parametrize("max_classes", [0, 9])
@pytest.mark.parametrize("quantize", [*LIMITS, "dynamic, but too small"])
def test_tasks_answer_as_in_the_bank(patched, quantize, max_classes):
    if small := quantize not in LIMITS:
        export, limit = patched("dynamic", max_classes, shipped=False), LIMITS["none"]
    else:
        export, limit = patched(quantize, max_classes), LIMITS[quantize]
    base = Base.load(export.folder / "base.tflite")
    kinds = {"none": "f4", "float16": "f2", "dynamic": "i1", "int8": "i1"}
    dtype = np.dtype("f4" if small else kinds[quantize])
    assert {base.manifest.entries[place].dtype for place in base.manifest.filters} == {dtype}
    model, images = Model(base), noise(export.size)
    for pack in export.packs:
        task = Task.load(export.folder / f"{pack.task}.edge", base.manifest)
        model.install(task)
        expected = export.bank.predict(images, task=pack.task)
        for run in (run_model, _run_compiled):
            found = task.probabilities(run(model.data, images), model.data)
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() < limit, (pack.task, run)
    model.remove()
    assert hashlib.sha256(model.data).digest() == base.manifest.base_sha256


def test_every_constant_is_listed_once_and_is_alone(patched):
    export = patched("int8", 9)
    base = Base.load(export.folder / "base.tflite")
    file = LiteFile(base.data)
    places = [tensor.data.offset for tensor in file.constants()]
    assert len(places) == len(set(places))
    assert {kind.kind for kind in base.manifest.entries} == {1, 2, 5, 7, 8}
    # Zeros are exact, and no filter reaches -128.
    for entry in base.manifest.entries:
        if entry.kind == 1:
            assert entry.dtype == np.int8
            assert np.frombuffer(base.data, np.int8, entry.size, entry.offset).min() >= -127


@pytest.mark.parametrize("quantize", list(LIMITS))
def test_constants_begin_where_the_runtime_wants_them(patched, quantize):
    """LiteRT reads constants in place; what is not aligned is slower, or stops a device."""
    file = LiteFile((patched(quantize).folder / "base.tflite").read_bytes())
    assert [tensor.name for tensor in file.constants() if tensor.data.offset % 16] == []
    assert len(list(file.constants())) > 10


def test_an_int8_base_takes_all_values_of_rgb(tmp_path, monkeypatch):
    """Though all images that it was calibrated on are dim."""
    backbone = small_backbone()
    pack = pack_of(trained_model(backbone), backbone)
    dim = noise(8, 16) / 20 + 100
    monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [dim for _ in packs])
    options = LiteOptions(quantize="int8", representative_data="images")
    export_litert(backbone, [pack], tmp_path / "out", options)
    file = LiteFile((tmp_path / "out" / "base.tflite").read_bytes())
    # The first operator makes int8 of the images: 0 becomes -128, 255 becomes 127.
    first = file.operators[0]
    assert first.code == schema.BuiltinOperator.QUANTIZE
    [output] = first.outputs
    assert (file.read(file.tensors[output].scales)[0], file.read(file.tensors[output].zeros)[0]) == (1.0, -128)


@pytest.mark.parametrize("quantize", ["none", "float16", "int8"])
def test_batch_norm_that_stands_alone(tmp_path, quantize, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    # As in DenseNet: what goes into batch norm is used elsewhere, too, and two layers are equal as they begin.
    for _ in range(2):
        y = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
        x = keras.layers.Concatenate()([x, keras.layers.Conv2D(4, 3, padding="same", use_bias=False)(y)])
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="dense")
    rename_layers(model)
    backbone = Backbone.from_model(model)
    packs = [pack_of(trained_model(backbone, norm=norm, seed=1), backbone, norm) for norm in ("frozen", "task")]
    monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [noise(8, 32) for _ in packs])
    data = "images" if quantize == "int8" else ""
    export_litert(backbone, packs, tmp_path / "out", LiteOptions(quantize=quantize, representative_data=data))
    base = Base.load(tmp_path / "out" / "base.tflite")
    assert {3, 4} <= {entry.kind for entry in base.manifest.entries}
    for pack in packs:
        task, copy = Task.load(tmp_path / "out" / f"{pack.task}.edge", base.manifest), Model(base)
        copy.install(task)
        expected = TaskBank(backbone).add(pack).predict(noise(8), task=pack.task)
        limit = {"none": 1e-5, "float16": 2e-2, "int8": 0.15}[quantize]
        assert np.abs(task.probabilities(run_model(copy.data, noise(8)), copy.data) - expected).max() < limit


@pytest.mark.slow
def test_densenet_with_its_own_batch_norm(tmp_path):
    backbone = load_backbone("densenet121", weights="random", image_size=32)
    pack = pack_of(trained_model(backbone, norm="task"), backbone)
    export_litert(backbone, [pack], tmp_path / "out")
    base = Base.load(tmp_path / "out" / "base.tflite")
    task, model = Task.load(tmp_path / "out" / "birds.edge", base.manifest), Model(base)
    model.install(task)
    expected = TaskBank(backbone).add(pack).predict(noise(32), task="birds")
    assert np.abs(task.probabilities(run_model(model.data, noise(32)), model.data) - expected).max() < 1e-4


@pytest.mark.parametrize(("gamma", "refused"), [(1e-12, ("none", "float16")), (1e-6, ("float16",)), (1e-2, ())])
def test_gamma_near_zero_is_refused(tmp_path, gamma, refused):
    backbone = small_backbone()
    layer = backbone.model.get_layer("inner").get_layer("batch_normalization")
    layer.gamma.assign(np.where(np.arange(6) == 2, gamma, 1.0))
    own = pack_of(trained_model(backbone, norm="task"), backbone)
    for quantize in ("none", "float16"):
        options, folder = LiteOptions(quantize=quantize), tmp_path / quantize
        if quantize in refused:
            with pytest.raises(ExportError, match="gamma of channel 2 of 'inner/batch_normalization' is so near zero"):
                export_litert(backbone, [own], folder, options)
            assert not list(tmp_path.glob(f"*{quantize}*"))
            # What keeps the base's batch norm asks nothing of this channel.
            own_not = pack_of(trained_model(backbone), backbone)
            export_litert(backbone, [own_not], folder, options)
        else:
            export_litert(backbone, [own], folder, options)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_task_is_added_to_a_base_in_the_field(patched, tmp_path, quantize, monkeypatch):
    export = patched(quantize)
    options = LiteOptions(representative_data="images" if quantize == "int8" else "")
    kept = {path.name: path.read_bytes() for path in export.folder.iterdir()}

    def add(pack, images):
        monkeypatch.setattr(write, "representative_images", lambda spec, packs, count: [images])
        return write.add_patches(export.backbone, [pack], export.folder / "base.tflite", tmp_path, options)[0]

    added = add(renamed(export.packs[3], "again"), noise(8, 32))
    assert added.path == tmp_path / "again.edge"
    assert {path.name: path.read_bytes() for path in export.folder.iterdir()} == kept
    manifest = Base.load(export.folder / "base.tflite").manifest
    first, second = (Task.load(path, manifest) for path in (export.folder / "ternary_norm.edge", added.path))
    assert {place: mask.tobytes() for place, mask in first.masks.items()} == {
        place: mask.tobytes() for place, mask in second.masks.items()
    }
    assert first.new_bytes == second.new_bytes
    if quantize == "none":
        assert added.saturation is None
        return
    assert added.saturation == []
    wild = {path: value * 30 if path.endswith("gamma") else value for path, value in export.packs[3].norm.items()}
    assert add(with_arrays(export.packs[3], norm=wild), noise(8, 4)).saturation


def test_what_is_refused(patched, tmp_path):
    export = patched("none")
    other = small_backbone(seed=5)
    pack = pack_of(trained_model(other), other)
    with pytest.raises(ExportError, match=r"base.tflite' was made of another base: hash \w{12}\.\.\., and this is"):
        write.add_patches(other, [pack], export.folder / "base.tflite", tmp_path, LiteOptions())
    with pytest.raises(PackError, match="was trained on another base"):
        write.add_patches(
            export.backbone, [export.packs[0], pack], export.folder / "base.tflite", tmp_path, LiteOptions()
        )
    with pytest.raises(PackError, match="two tasks named 'binary'"):
        export_litert(export.backbone, [export.packs[0]] * 2, tmp_path / "out")
    with pytest.raises(ExportError, match="is there already"):
        export_litert(export.backbone, export.packs, export.folder)
    with pytest.raises(ExportError, match="has 7 classes; the base has room for 3"):
        export_litert(export.backbone, export.packs[-1:], tmp_path / "out", LiteOptions(max_classes=3))
    with pytest.raises(ExportError, match="--quantize=dynamic does not go with --design=switch"):
        export_litert(export.backbone, export.packs, tmp_path / "out", LiteOptions(design="switch", quantize="dynamic"))
    with pytest.raises(ValueError, match="representative_data is missing"):
        LiteOptions(quantize="int8")
    with pytest.raises(ValueError, match="how many images of representative_data, which is missing"):
        LiteOptions(representative_images=7)
    with pytest.raises(ValueError, match="max_classes must be an integer from 0 to 1048576"):
        LiteOptions(max_classes=2**20 + 1)
    unused = LiteOptions(quantize="float16", representative_data="images")
    with pytest.raises(ExportError, match="representative_data is for --quantize=int8"):
        export_litert(export.backbone, export.packs, tmp_path / "out", unused)
    with pytest.raises(ExportError, match="representative_data is for bases of int8"):
        write.add_patches(export.backbone, export.packs[:1], export.folder / "base.tflite", tmp_path, unused)
    long = dataclasses.replace(export.packs[0], class_names=["a" * 65536, "b"])
    with pytest.raises(EdgeError, match="'binary' cannot be used: a text in it is too long"):
        export_litert(export.backbone, [long], tmp_path / "out")
    with pytest.raises(ExportError, match="is no export: there is no manifest.bin beside it"):
        is_patched(tmp_path / "base.tflite")
    data = bytearray((export.folder / "base.tflite").read_bytes())
    data[-5] ^= 1
    for name in ("manifest.bin", "manifest.json"):
        (tmp_path / name).write_bytes((export.folder / name).read_bytes())
    (tmp_path / "base.tflite").write_bytes(data)
    with pytest.raises(ExportError, match="base.tflite' is damaged, or is not the base"):
        write.add_patches(export.backbone, export.packs[:1], tmp_path / "base.tflite", None, LiteOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.tflite", "manifest.bin", "manifest.json"]


def test_another_task_of_the_same_name_is_not_replaced(patched, tmp_path):
    export = patched("none")
    for name in ("base.tflite", "manifest.bin", "manifest.json"):
        (tmp_path / name).write_bytes((export.folder / name).read_bytes())
    base, (first, second) = tmp_path / "base.tflite", export.packs[:2]

    def add(*packs, compress=False):
        write.add_patches(export.backbone, packs, base, None, LiteOptions(compress=compress))
        return {path.name: path.read_bytes() for path in tmp_path.glob("*.edge")}

    kept = add(first)
    # The same task may be written again, also compressed and back.
    assert add(first) == kept
    assert add(first, compress=True) != kept
    assert add(first) == kept
    head = {name: value + 1 for name, value in first.head.items()}
    for other in (renamed(second, first.task), with_arrays(first, head=head)):
        # Nor is another task written that comes before it.
        with pytest.raises(ExportError, match=r"binary.edge' is there already and holds another task of this name, or"):
            add(renamed(second, "before"), other)
        assert {path.name: path.read_bytes() for path in tmp_path.glob("*.edge")} == kept
    (tmp_path / "binary.edge").write_bytes(kept["binary.edge"][:-1])
    with pytest.raises(ExportError, match=r"is there already and is no file of this task \(.*cut off.*delete it"):
        add(first)


@pytest.mark.parametrize(
    ("role", "change"),
    [
        ("filter", {"tensor": 9999}),
        ("filter", {"tensor": 0}),
        ("filter", {"tensor": []}),
        ("filter", {"role": "scales"}),
        ("filter", {"role": "head kernel"}),
        ("filter", {"kernel": "other/kernel"}),
        ("filter", {"kernel": "conv2d/kernel"}),
        ("filter", {"norm": "other"}),
        ("filter", {"order": [0, 0]}),
        ("filter", {"extra": "a"}),
        ("bias", {"norm": None}),
        ("bias", {"bias": "other/bias"}),
    ],
)
def test_a_damaged_manifest_for_people_is_refused(patched, tmp_path, role, change):
    export = patched("none")
    for name in ("base.tflite", "manifest.bin"):
        (tmp_path / name).write_bytes((export.folder / name).read_bytes())
    document = json.loads((export.folder / "manifest.json").read_text())
    next(each for each in document["constants"] if each["role"] == role and each["part"] == "data").update(change)
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(
        ExportError, match=r"manifest.json beside '.*base.tflite' (is damaged|does not fit manifest.bin)"
    ):
        write.read_base(export.backbone, tmp_path / "base.tflite")


def _run_cached(path, cache, image):
    """Returns the output of a file for an image, with weights that XNNPACK keeps in another file."""
    cpu = CpuOptions(num_threads=1, xnnpack_weight_cache_path=str(cache))
    options = Options(hardware_accelerators=HardwareAccelerator.CPU, cpu_options=cpu)
    model = CompiledModel.from_file(str(path), options=options)
    inputs, outputs = model.create_input_buffers(0), model.create_output_buffers(0)
    inputs[0].write(image)
    model.run_by_index(0, inputs, outputs)
    count = model.get_output_buffer_requirements(0, 0)["buffer_size"] // 4
    return np.array(outputs[0].read(count, np.float32))


def test_the_weight_cache_of_a_task_is_its_own(patched, tmp_path, capsys):
    """XNNPACK answers with the weights in a cache, whatever the model has; `install` names one for each task."""
    export, image = patched("none"), noise(8, 1)
    current, files = tmp_path / "current.tflite", (export.folder / "base.tflite", export.folder / "binary.edge")
    outputs, caches = [], []
    for command in ("remove", "install", "install", "remove"):
        assert main([command, *map(str, files if command == "install" else files[:1]), str(current)]) == 0
        caches.append(Path(capsys.readouterr().out.strip().rpartition(": ")[2]))
        outputs.append(_run_cached(current, caches[-1], image))
        assert caches[-1].stat().st_size > 0
        np.testing.assert_allclose(outputs[-1], run_model(current.read_bytes(), image)[0], atol=1e-5)
        # A model says by itself which cache is its own.
        digest = Base.load(files[0]).manifest.installed(current.read_bytes())
        sha256 = hashlib.sha256(files[0].read_bytes()).digest()
        assert caches[-1] == weight_cache(current, digest or sha256)
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3
    assert caches[0] == caches[3] != caches[1] == caches[2]


@pytest.mark.parametrize(("quantize", "max_classes"), [("none", 0), ("int8", 9)])
def test_the_head_of_another_task_is_refused(patched, quantize, max_classes):
    export = patched(quantize, max_classes)
    base, images = Base.load(export.folder / "base.tflite"), noise(8, 1)
    model, tasks = Model(base), [Task.load(path, base.manifest) for path in sorted(export.folder.glob("*.edge"))]
    assert len({task.digest for task in tasks}) == len(tasks)
    for task in tasks:
        model.install(task)
        content = bytes(model.data)
        output = run_model(content, images)
        for other in tasks:
            if other is task:
                assert other.probabilities(output, content).shape == (1, len(task.labels))
                continue
            with pytest.raises(EdgeError, match="another one or none: install it"):
                other.probabilities(output, content)
    with pytest.raises(EdgeError, match="another one or none"):
        tasks[0].probabilities(run_model(base.data, images), base.data)
    with pytest.raises(EdgeError, match="it is not of this base"):
        tasks[0].probabilities(output, content[1:])
    other = Base.load(patched("float16", max_classes).folder / "base.tflite")
    with pytest.raises(EdgeError, match="was read for another base"):
        Model(other).install(tasks[0])


def test_a_task_that_is_no_file_has_no_digest(patched):
    export = patched("none")
    base = read_base(export.backbone, export.folder / "base.tflite")
    with pytest.raises(EdgeError, match="has no digest, which a task has that was read from a file"):
        Model(Base(bytes(base.file.data), base.manifest)).install(make_task(base, export.packs[0]))


def test_a_base_of_version_1_is_still_used(patched, tmp_path):
    """Its models do not say which task is on them."""
    export = patched("none")
    base = read_base(export.backbone, export.folder / "base.tflite")
    # As it was exported then: without the place.
    model = read_objects(bytes(base.file.data))
    model.metadata = [entry for entry in model.metadata if entry.name != TASK_NAME]
    file = LiteFile(pack_objects(model))
    old = Patchable.of([dataclasses.replace(base.graphs[0], file=file)], export.backbone, "none")
    content = manifest_bytes(old.manifest)
    assert (old.manifest.task_place, content[8]) == (0, 1)
    (tmp_path / "base.tflite").write_bytes(file.data)
    (tmp_path / "manifest.bin").write_bytes(content)
    document = manifest_json(old.manifest, [slot.to_json() for slot in old.slots], {})
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    added = write.add_patches(export.backbone, export.packs[:1], tmp_path / "base.tflite", None, LiteOptions())
    device = Base.load(tmp_path / "base.tflite")
    task, images, installed = Task.load(added[0].path, device.manifest), noise(8), Model(device)
    installed.install(task)
    found = task.probabilities(run_model(installed.data, images), installed.data)
    assert np.abs(found - export.bank.predict(images, task=task.name)).max() < LIMITS["none"]
    with pytest.raises(EdgeError, match="of version 1, whose models do not say which task is on them"):
        device.manifest.installed(installed.data)


def test_all_variants_are_packed(patched):
    assert {path.stem for path in patched("none").folder.glob("*.edge")} == set(VARIANTS)
