"""One base for tasks of classes and of pixels: a graph for each, over the same constants."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest
from ai_edge_litert.compiled_model import CompiledModel

from export.edge.piggyback_edge import Base, EdgeError, Model, Task, main
from export.lite.checks import run_model
from export.lite.flatbuffer import LiteFile, pack_objects, read_objects
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.lite.patch.patchable import Patchable
from export.lite.patch.write import read_base
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import at_own_size, parse_augment
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import TaskBank
from tests.export.helpers import encode, picture
from tests.packs.helpers import pack_of, renamed, trained_model, with_arrays
from tests.packs.test_segments import images_of, segments_model, segments_pack

# The largest difference of a probability, and the largest share of pixels that find another class, by quantisation. The
# heads are random ones, in which classes are close to one another.
LIMITS = {"none": (1e-6, 0.0), "float16": (2e-3, 1e-3), "dynamic": (3e-2, 3e-2), "int8": (4e-2, 5e-2)}


@pytest.fixture(scope="module", name="parts")
def _parts():
    """A backbone, its packs of both kinds and a bank with them."""
    backbone = load_backbone("shapesnet", image_size=32)
    roads = segments_pack(segments_model(backbone), backbone)
    shapes = pack_of(trained_model(backbone, classes=4), backbone, "shapes", 4)
    own = pack_of(trained_model(backbone, classes=3, norm="task"), backbone, "own", 3)
    bank = TaskBank(backbone).add(roads).add(shapes).add(own)
    return types.SimpleNamespace(backbone=backbone, roads=roads, shapes=shapes, own=own, bank=bank)


AUGMENT = {"a": "resize(64,96)", "b": "resize(40,56)"}


def calibration(spec, packs, count):
    """Returns images for the ranges of int8."""
    return [images_of(pack.image_shape, 24).astype(np.float32) for pack in packs]


@pytest.fixture(scope="module", name="export")
def _export(parts, tmp_path_factory):
    """A function of a quantisation, and of names of tasks, that returns the folder of an export of design patch."""

    @functools.cache
    def make(quantize, names=("own", "roads", "shapes"), max_classes=0):
        folder = tmp_path_factory.mktemp("kinds") / "out"
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(quantize=quantize, max_classes=max_classes, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(write, "representative_images", calibration)
            export_litert(parts.backbone, [getattr(parts, name) for name in names], folder, options)
        return folder

    return make


def installed(folder, name):
    """Returns a task and the content of a model with it."""
    base = Base.load(folder / "base.tflite")
    task, model = Task.load(folder / f"{name}.edge", base.manifest), Model(base)
    model.install(task)
    return task, bytes(model.data)


@pytest.mark.parametrize("quantize", list(LIMITS))
def test_tasks_of_both_kinds_answer_as_in_the_bank(parts, export, quantize):
    of_probability, of_pixels = LIMITS[quantize]
    for pack in (parts.own, parts.roads, parts.shapes):
        task, content = installed(export(quantize), pack.task)
        images = images_of(pack.image_shape, 4)
        output = run_model(content, images.astype(np.float32), task.signature.name)
        expected = parts.bank.predict(images, task=pack.task)
        if pack is parts.roads:
            labels = task.label_maps(output, content)
            assert labels.dtype == np.uint8 and labels.shape == (4, 40, 56) and len(np.unique(expected)) > 2
            assert (labels != expected).mean() <= of_pixels
            assert (task.problem, task.answer, task.graph) == ("map", "argmax", 1)
            assert json.loads(task.head_spec) == pack.head_spec.to_json()
        else:
            assert np.abs(task.probabilities(output, content) - expected).max() < of_probability
            assert (task.problem, task.answer, task.graph) == ("class", "softmax", 0)


@pytest.mark.parametrize("quantize", list(LIMITS))
def test_both_graphs_have_the_constants_of_the_base_in_common(parts, export, quantize):
    """Biases of int8, too, which are in multiples of the scales of activations: these are the same in both."""
    document = json.loads((export(quantize) / "manifest.json").read_text())
    data = [entry for entry in document["constants"] if entry["part"] == "data"]
    shared = {entry.get("kernel") or entry["norm"] for entry in data if len(entry["tensors"]) == 2}
    alone = [path for entry in data for path in (entry.get("kernel"), entry.get("norm"), entry.get("bias")) if path]
    alone = [path for path in alone if path not in shared]
    assert shared >= set(parts.shapes.masks) and all(path.startswith("head/") for path in alone)
    file = LiteFile((export(quantize) / "base.tflite").read_bytes())
    # LiteRT reads constants in place, in both graphs.
    for graph in (file, file.with_graph(1)):
        assert [tensor.name for tensor in graph.constants() if tensor.data.offset % 16] == []
    alone = (export(quantize, ("own", "shapes")) / "base.tflite").stat().st_size
    assert len(file.data) < alone + 30_000 < 2 * alone


def test_a_base_of_one_kind_is_as_before(export):
    """Its manifest and tasks are of the older versions, so that patchers in the field read them."""
    folder = export("none", ("own", "shapes"))
    assert (folder / "manifest.bin").read_bytes()[8] == 2 and (folder / "own.edge").read_bytes()[8] == 1
    mixed = export("none")
    assert (mixed / "manifest.bin").read_bytes()[8] == 3 and (mixed / "own.edge").read_bytes()[8] == 2
    manifest = Base.load(mixed / "base.tflite").manifest
    assert [(each.name, each.image_shape, each.room, each.features, each.places) for each in manifest.signatures] == [
        ("serving_default", (32, 32), 0, 96, 1),
        ("fpn8_40x56", (40, 56), 5, 0, 40 * 56),
    ]


def test_pixels_alone_and_heads_with_room(parts, export):
    """A base without tasks of classes; and one whose heads of both kinds have room for 7 classes."""
    images = images_of((40, 56), 2)
    expected = parts.bank.predict(images, task="roads")
    for folder in (export("none", ("roads",)), export("none", max_classes=7)):
        task, content = installed(folder, "roads")
        output = run_model(content, images.astype(np.float32), task.signature.name)
        assert np.array_equal(task.label_maps(output, content), expected)
    assert task.signature.room == 7 and output.shape == (2, 40, 56, 7)
    task, content = installed(export("none", max_classes=7), "shapes")
    small = images_of((32, 32), 2)
    found = task.probabilities(run_model(content, small.astype(np.float32), task.signature.name), content)
    assert np.abs(found - parts.bank.predict(small, task="shapes")).max() < 1e-6


def test_any_number_of_classes_on_a_base_of_before(parts, tmp_path):
    """Its graph ends in features as for one class, so that the base is as before; the task says that it is another."""
    many = dataclasses.replace(parts.shapes, task="many", problem="multilabel")
    export_litert(parts.backbone, [many, parts.shapes], tmp_path / "out")
    assert [(tmp_path / "out" / name).read_bytes()[8] for name in ("manifest.bin", "many.edge", "shapes.edge")] == [
        2,
        2,
        1,
    ]
    task, content = installed(tmp_path / "out", "many")
    images = images_of((32, 32), 3)
    found = task.probabilities(run_model(content, images.astype(np.float32)), content)
    expected = TaskBank(parts.backbone).add(many).predict(images, task="many")
    assert np.abs(found - expected).max() < 1e-6 and abs(found.sum(axis=1) - 1).max() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_sizes_that_are_padded_share_the_constants_too(parts, quantize, tmp_path, monkeypatch):
    """Two sizes and two widths of heads beside classes: four graphs."""
    monkeypatch.setattr(write, "representative_images", calibration)
    packs = [parts.shapes]
    for name, spec in (("a", HeadSpec("fpn", 5, 8, (64, 96))), ("b", HeadSpec("fpn", 3, 4, (40, 56)))):
        packs.append(
            segments_pack(segments_model(parts.backbone, 1, spec), parts.backbone, name, spec.classes, AUGMENT[name])
        )
    data = "images" if quantize == "int8" else ""
    options = LiteOptions(quantize=quantize, representative_data=data)
    export_litert(parts.backbone, [*packs, parts.roads], tmp_path / "out", options)
    document = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [each["name"] for each in document["signatures"]] == [
        "serving_default", "fpn8_64x96", "fpn4_40x56", "fpn8_40x56",
    ]  # fmt: skip
    data = [entry for entry in document["constants"] if entry["part"] == "data"]
    assert all(len(entry["tensors"]) == 4 for entry in data if entry.get("kernel") in parts.shapes.masks)
    biases = [entry for entry in data if entry["role"] in ("bias", "offset") and not entry["norm"].startswith("head/")]
    assert biases and all(len(entry["tensors"]) == 4 for entry in biases)
    bank = TaskBank(parts.backbone)
    for pack in packs[1:]:
        task, content = installed(tmp_path / "out", pack.task)
        images = images_of(pack.image_shape, 2)
        output = run_model(content, images.astype(np.float32), task.signature.name)
        expected = bank.add(pack).predict(images, task=pack.task)
        assert (task.label_maps(output, content) != expected).mean() <= LIMITS[quantize][1]


def test_the_newer_interface_of_litert_takes_both_graphs(parts, export):
    task, content = installed(export("none"), "roads")
    compiled = CompiledModel.from_buffer(content)
    (taken,), (given,) = (make(task.graph) for make in (compiled.create_input_buffers, compiled.create_output_buffers))
    images = images_of((40, 56), 1)
    taken.write(images.astype(np.float32))
    compiled.run_by_index(task.graph, [taken], [given])
    output = np.array(given.read(task.signature.places * task.signature.room, np.float32)).reshape(1, 40, 56, -1)
    assert np.array_equal(task.label_maps(output, content), parts.bank.predict(images, task="roads"))


def test_a_task_is_read_by_what_it_answers(export):
    task, content = installed(export("none"), "roads")
    output = np.zeros((1, 40, 56, 5), np.float32)
    with pytest.raises(EdgeError, match="'roads' is of the problem 'map': ask for its label_maps"):
        task.probabilities(output, content)
    with pytest.raises(EdgeError, match="not finite"):
        task.label_maps(output * np.nan, content)
    other, on_it = installed(export("none"), "shapes")
    with pytest.raises(EdgeError, match="Not task 'roads' is on the model"):
        task.label_maps(output, on_it)
    with pytest.raises(EdgeError, match="ask for its probabilities"):
        other.label_maps(output, on_it)


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_a_task_of_pixels_is_added_to_a_base_in_the_field(parts, export, quantize, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "representative_images", calibration)
    options = LiteOptions(representative_data="images" if quantize == "int8" else "")
    base = export(quantize) / "base.tflite"
    fewer = dataclasses.replace(
        parts.roads,
        task="fewer",
        class_names=["road", "sky"],
        head_spec=dataclasses.replace(parts.roads.head_spec, classes=2),
        arrays=dataclasses.replace(
            parts.roads.arrays,
            head={
                name: value[..., :2] if name.startswith("logits/") else value
                for name, value in parts.roads.head.items()
            },
        ),
    )
    (added,) = write.add_patches(parts.backbone, [fewer], base, tmp_path, options)
    manifest = Base.load(base).manifest
    task, model = Task.load(added.path, manifest), Model(Base.load(base))
    model.install(task)
    images = images_of((40, 56), 2)
    found = task.label_maps(run_model(model.data, images.astype(np.float32), task.signature.name), model.data)
    expected = TaskBank(parts.backbone).add(fewer).predict(images, task="fewer")
    assert (found != expected).mean() <= LIMITS[quantize][1] and set(np.unique(found)) <= {0, 1}
    if quantize == "none":
        assert added.saturation is None
        return
    assert added.saturation == []
    # A decoder whose maps are far larger than those that the base was calibrated on.
    wild = {name: value * 30 if name.endswith("gamma") else value for name, value in parts.roads.head.items()}
    (added,) = write.add_patches(
        parts.backbone, [renamed(with_arrays(parts.roads, head=wild), "wild")], base, tmp_path, options
    )
    assert added.saturation and all(found.reaches[1] > found.limits[1] for found in added.saturation)


def test_what_a_base_does_not_answer_is_refused(parts, export, tmp_path):
    base = export("none", ("own", "shapes")) / "base.tflite"
    with pytest.raises(ExportError, match=r"'fpn' for images of 40x56 pixels. The base answers by the signatures serv"):
        write.add_patches(parts.backbone, [parts.roads], base, tmp_path, LiteOptions())
    with pytest.raises(ExportError, match="has 5 classes; the base has room for 3"):
        export_litert(parts.backbone, [parts.roads], tmp_path / "out", LiteOptions(max_classes=3))
    for design in ("switch", "input"):
        with pytest.raises(
            ExportError, match=r"'roads' of the problem 'map' has a head of kind 'fpn'. The designs swi"
        ):
            export_litert(parts.backbone, [parts.shapes, parts.roads], tmp_path / "out", LiteOptions(design=design))
    with pytest.raises(ExportError, match="of the problem 'other', and this version"):
        other = dataclasses.replace(parts.roads, problem="other")
        export_litert(parts.backbone, [other], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_base_is_read_again_as_it_was_written(parts, export):
    for folder in (export("int8"), export("none", ("roads",))):
        base = read_base(parts.backbone, folder / "base.tflite")
        assert base.manifest == Base.load(folder / "base.tflite").manifest


def test_constants_that_are_not_the_same_share_nothing(parts, export):
    base = read_base(parts.backbone, export("none") / "base.tflite")
    model = read_objects(bytes(base.file.data))
    first, second = (
        {constant.kernel or constant.norm: constant.tensor for constant in graph.constants.values()}
        for graph in base.graphs
    )
    other = next(path for path in second if path.startswith("head/"))
    tensors = model.subgraphs[1].tensors
    tensors[second[other]].buffer = model.subgraphs[0].tensors[next(iter(first.values()))].buffer
    file = LiteFile(pack_objects(model))
    graphs = [
        dataclasses.replace(graph, file=file.with_graph(number) if number else file)
        for number, graph in enumerate(base.graphs)
    ]
    with pytest.raises(ValueError, match="shares its bytes with another one"):
        Patchable.of(graphs, parts.backbone, "none")


def test_graphs_that_are_branches_are_refused(export):
    model = read_objects((export("none") / "base.tflite").read_bytes())
    model.signatureDefs = model.signatureDefs[:1]
    with pytest.raises(ValueError, match="2 graphs with branches"):
        LiteFile(pack_objects(model))


def test_predict_writes_label_maps_of_the_images_own_size(parts, export, tmp_path, capsys):
    folder = export("none")
    files = [str(folder / name) for name in ("base.tflite", "roads.edge")]
    photo = tmp_path / "photo.png"
    image = picture(61, 83)
    photo.write_bytes(encode(image, "PNG"))
    operations = parse_augment("resize(40,56)")
    prepared = operations[0].apply(image)
    np.save(tmp_path / "prepared.npy", prepared)
    out = tmp_path / "maps"
    assert main(["predict", *files, str(photo), str(tmp_path / "prepared.npy"), "--output_dir", str(out)]) == 0
    (expected,) = parts.bank.predict(prepared[None], task="roads")
    from PIL import Image

    with Image.open(out / "photo.png.labels.png") as found:
        labels = np.asarray(found)
    assert np.array_equal(labels, at_own_size(expected, operations, (61, 83)))
    assert np.array_equal(np.load(out / "prepared.npy.labels.npy"), expected)
    line = capsys.readouterr().out.splitlines()[0]
    best = np.bincount(labels.reshape(-1)).argmax()
    share = (labels == best).mean()
    assert line.startswith(f"{photo}: {parts.roads.class_names[best]} {share:.4f}")
    assert main(["inspect", *files]) == 0
    text = capsys.readouterr().out
    assert "2 kinds of tasks" in text and "signature fpn8_40x56: images 40 x 56, a head of 5 classes inside" in text
    assert "problem map, signature fpn8_40x56" in text
    classes = [files[0], str(folder / "shapes.edge")]
    assert main(["predict", *classes, str(photo), "--output_dir", str(out)]) == 2
    assert "finds no label maps; leave --output_dir out" in capsys.readouterr().err
    assert main(["predict", *files, str(photo), str(photo), "--output_dir", str(out)]) == 2
    assert "Two images are called 'photo.png'" in capsys.readouterr().err
