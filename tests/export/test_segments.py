"""Tasks of classes and of segments in one SavedModel, by each of the loaders."""

import dataclasses
import io
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow.python.saved_model.loader_impl import parse_saved_model

from export.deployment.memory import image_bytes
from export.saved_model import add_tasks, export_saved_model
from export.servable.compare_answers import AnswersComparison, compare_answers
from export.servable.folder import read_description
from export.servable.options import ExportOptions
from export.servable.read import read_export
from export.servable.task_tables import CLASSES, Family
from export.shared.errors import ExportError
from piggyback_tf.backbones import load_backbone
from piggyback_tf.data import at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import PackError, TaskBank
from tests.export.helpers import LOADERS, call, encode, picture, texts
from tests.export.segments import SPECS, assert_same_labels
from tests.image_files import profile
from tests.packs.helpers import renamed, with_arrays
from tests.packs.test_segments import images_of, segments_model, segments_pack

# A task of the size, one of classes, one of another head, one of another size, none, and the first again.
NAMES = ["roads", "shapes4", "fields", "lakes", "fish", "paths", "roads"]
TASKS = ["roads", "shapes4", "fields", "shapes2", "lakes", "paths"]
# The server's loader; the others, and kernels that are unpacked once, are slow.
CASES = [
    pytest.param(case, id="-".join(case), marks=[] if case == ("packed", "c_api") else pytest.mark.slow)
    for case in [*(("packed", loader) for loader in LOADERS), ("unpacked", "v2"), ("unpacked", "c_api")]
]


@pytest.fixture(scope="module", name="unpacked")
def _unpacked(mixed, tmp_path_factory):
    options = ExportOptions(cache="unpacked", image_dtype="float32", top_k=3)
    return export_saved_model(mixed.backbone, mixed.packs, tmp_path_factory.mktemp("unpacked"), options)


def _turned(seed):
    """Returns a JPEG of a camera that was held upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(picture(70, 90, seed=seed), "JPEG", exif=exif)


FILES = [
    encode(picture(80, 112, seed=1), "PNG"),
    encode(picture(50, 50, seed=2), "PNG"),
    encode(picture(41, 57, seed=3), "JPEG"),
    _turned(4),
    encode(picture(30, 30, seed=5), "PNG"),
    _turned(6),
    b"no image",
]


@pytest.fixture(scope="module", params=CASES, name="answers")
def _answers(request, mixed):
    export, loader = request.param
    dtype = "uint8" if export == "packed" else "float32"
    images = {shape: images_of(shape, len(NAMES)).astype(dtype) for shape in ((40, 56), (48, 48), (32, 32))}
    named, numbers = texts(*NAMES), np.array([TASKS.index(name) if name in TASKS else 77 for name in NAMES], np.int32)
    calls = {
        "maps": ("segment_40x56", {"images": images[40, 56], "task": named}),
        "squares": ("segment_48x48", {"images": images[48, 48], "task": named}),
        "files": ("segment", {"image_bytes": texts(*FILES), "task": named}),
        "names": ("by_name", {"images": images[32, 32], "task": named}),
        "numbers": ("serving_default", {"images": images[32, 32], "task": numbers}),
        "encoded": ("encoded", {"image_bytes": texts(*FILES), "task": named}),
        "none": ("segment_40x56", {"images": images[40, 56][:0], "task": texts()}),
        "no files": ("segment", {"image_bytes": texts(), "task": texts()}),
        "other size": ("segment_40x56", {"images": images[48, 48], "task": named}),
        "too few": ("segment", {"image_bytes": texts(*FILES), "task": named[:2]}),
    }
    if export == "unpacked":
        odd = images[40, 56].copy()
        odd[0, 3, 3, 0], odd[2, 0, 0, 0] = np.nan, 256
        calls["odd pixels"] = ("segment_40x56", {"images": odd, "task": named})
    folder = mixed.packed if export == "packed" else request.getfixturevalue("unpacked")
    found = call(loader, folder, list(calls.values()))
    return dict(zip(calls, found, strict=True)), loader, images


def test_label_maps_are_those_of_the_trained_models(answers, mixed):
    found, _, images = answers
    for kind, shape in (("maps", (40, 56)), ("squares", (48, 48))):
        good = [name in SPECS and SPECS[name].image_shape == shape for name in NAMES]
        assert found[kind]["task_ok"].tolist() == good and any(good) and not all(good)
        assert found[kind]["image_ok"].all()
        labels = found[kind]["labels"]
        assert labels.dtype == np.uint8 and (labels[np.logical_not(good)] == 255).all()
        for row in np.flatnonzero(good):
            logits = mixed.models[NAMES[row]].predict(images[shape][row : row + 1], verbose=0)
            assert_same_labels(labels[row : row + 1], logits)


def test_files_are_answered_at_their_own_size(answers, mixed):
    found = answers[0]["files"]
    assert found["task_ok"].tolist() == [name in SPECS for name in NAMES]
    assert found["image_ok"].tolist() == [True] * 6 + [False]
    for row, name in enumerate(NAMES):
        if name not in SPECS or row == 6:
            assert found["png_bytes"][row] == b""
            continue
        original = decode_image(FILES[row], "file")
        operations = parse_augment(mixed.bank.info(name)["eval_augment"])
        labels = mixed.bank.predict(apply_operations(operations, original)[None], name)[0]
        expected = at_own_size(labels, operations, original.shape[:2])
        with Image.open(io.BytesIO(found["png_bytes"][row])) as image:
            assert image.mode == "L" and image.format == "PNG"
            assert image.size == (expected.shape[1], expected.shape[0])
            assert np.mean(np.asarray(image) != expected) <= 1e-4


def test_tasks_of_classes_are_answered_beside_them(answers, mixed):
    found, _, images = answers
    good = np.array([name == "shapes4" for name in NAMES])
    expected = mixed.bank.predict(images[32, 32][1:2], "shapes4")[0]
    for kind in ("names", "numbers"):
        assert found[kind]["probabilities"].shape == (len(NAMES), 4)
        np.testing.assert_array_equal(found[kind]["task_ok"], good)
        np.testing.assert_array_equal(found[kind]["class_id"], np.where(good, expected.argmax(), -1))
        np.testing.assert_allclose(found[kind]["probabilities"][1], expected, rtol=0, atol=1e-5)
        assert not found[kind]["probabilities"][~good].any()
    np.testing.assert_array_equal(found["encoded"]["task_ok"], good)
    assert found["encoded"]["image_ok"].tolist() == [True] * 6 + [False]
    assert not found["encoded"]["scores"][~good].any() and set(found["encoded"]["labels"][~good].reshape(-1)) == {b""}
    image = apply_operations(parse_augment("resize(32,32)"), decode_image(FILES[1], "file"))
    ((best, score), *_) = mixed.bank.top_k(image[None], "shapes4")[0]
    assert found["encoded"]["labels"][1, 0] == best.encode()
    assert found["encoded"]["scores"][1, 0] == pytest.approx(score, abs=1e-5)


def test_nothing_and_what_does_not_fit(answers):
    found, loader, _ = answers
    assert found["none"]["labels"].shape == (0, 40, 56)
    assert found["no files"]["png_bytes"].shape == found["no files"]["image_ok"].shape == (0,)
    for kind, message in (
        ("other size", "images must be [B, 40, 56, 3], not] [7 48 48 3]"),
        ("too few", "one task for each image. Shapes of images and task:] [7] [2]"),
    ):
        assert isinstance(found[kind], str)
        # TensorFlow 1's session looks at shapes itself.
        assert message in found[kind] or (loader == "v1" and "Cannot feed value of shape" in found[kind])


def test_pixels_that_are_no_colours_flag_their_rows(answers):
    found, _, images = answers
    if images[40, 56].dtype == np.uint8:
        assert "odd pixels" not in found  # Bytes are always colours.
        return
    odd, good = found["odd pixels"], found["maps"]
    assert odd["image_ok"].tolist() == [False, True, False] + [True] * 4
    assert (odd["labels"][[0, 2]] == 255).all()
    assert np.mean(odd["labels"][3:] != good["labels"][3:]) <= 1e-4


def test_the_description_says_what_is_there(mixed):
    content = read_description(mixed.packed)
    assert content["format"] == 2
    assert [entry.get("problem", "class") for entry in content["tasks"]] == [pack.problem for pack in mixed.packs]
    # Each kind of head once, in the order of its first task.
    assert [HeadSpec.from_json(entry["head"]) for entry in content["heads"]] == [
        SPECS[name] for name in ("roads", "fields", "lakes")
    ]
    assert (mixed.packed / "assets/heads/2/saved_model.pb").is_file()
    ((listed),) = call("v2", mixed.packed.parent / "with_mask/1", [("find_tasks", {"task": texts()})])
    assert [name.decode() for name in listed["names"]] == TASKS
    assert [name.decode() for name in listed["signature"]] == [
        "segment" if name in SPECS else "encoded" for name in TASKS
    ]


def test_an_export_of_classes_alone_is_as_it_was(small):
    content = json.loads((small.packed / "assets/export.json").read_text())
    assert content["format"] == 1 and "heads" not in content and not (small.packed / "assets/heads").exists()
    assert "problem" not in content["tasks"][0] and "head" not in content["tasks"][0]
    names = {name.partition("/")[0] for name, _ in tf.train.list_variables(str(small.packed / "variables/variables"))}
    assert "family" not in names
    assert _signatures(small.packed).keys() == {"serving_default", "by_name", "encoded"}
    second = _signatures(small.packed.parent / "with_mask/1")
    assert set(second["find_tasks"].outputs) == {"names", "classes", "count"}


def _signatures(folder):
    """Returns the signatures of a SavedModel by name, without loading it."""
    found = parse_saved_model(str(folder)).meta_graphs[0].signature_def
    return {name: signature for name, signature in found.items() if not name.startswith("__")}


@pytest.mark.slow
def test_an_export_of_segments_alone_and_one_more_without_the_base(mixed, tmp_path):
    folder = export_saved_model(mixed.backbone, mixed.packs[:1], tmp_path)
    assert read_description(folder)["kernels"] == "unpacked"
    # The network is there already.
    folder = add_tasks(tmp_path, [mixed.packs[-1]])
    assert _signatures(folder).keys() == {"segment", "segment_40x56"}
    images, names = images_of((40, 56), 3), ["roads", "fish", "paths"]
    (found,) = call("v2", folder, [("segment_40x56", {"images": images, "task": texts(*names)})])
    assert found["task_ok"].tolist() == [True, False, True]
    for row in (0, 2):
        logits = mixed.models[names[row]].predict(images[row : row + 1], verbose=0)
        assert_same_labels(found["labels"][row : row + 1], logits)
    base, tables, _ = read_export(folder)
    assert list(base.heads) == [SPECS["roads"]] == list(tables.head_specs)


def test_a_task_with_another_head_needs_the_base(mixed, small, tmp_path):
    wide = HeadSpec("fpn", 5, 8, (64, 40))
    pack = segments_pack(segments_model(mixed.backbone, 0, wide), mixed.backbone, "wide", 5, "resize(64,40)")
    with pytest.raises(
        ExportError, match="a head 'fpn' for images of 64x40 pixels, and no task of the export has such"
    ):
        add_tasks(mixed.packed, [pack], tmp_path)
    with pytest.raises(ExportError, match="The export is of another base"):
        add_tasks(mixed.packed, [pack], tmp_path, backbone=small.backbone)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_tasks_of_segments_are_added_to_an_export_of_classes(mixed, tmp_path):
    packs = {pack.task: pack for pack in mixed.packs}
    export_saved_model(mixed.backbone, [packs["shapes4"], packs["shapes2"]], tmp_path, ExportOptions(cache="packed"))
    asked = []
    new = [packs["roads"], packs["fields"]]
    add_tasks(tmp_path, new, backbone=lambda pack: asked.append(pack.task) or mixed.backbone)
    assert asked == ["roads"]
    # The network is there already, so that the base is not needed.
    add_tasks(tmp_path, [packs["paths"]])
    add_tasks(tmp_path, [packs["lakes"]], backbone=mixed.backbone)
    last = tmp_path / "4"
    images = {shape: images_of(shape, 1) for shape in ((40, 56), (48, 48), (32, 32))}
    calls = [
        (
            f"segment_{spec.image_shape[0]}x{spec.image_shape[1]}",
            {"images": images[spec.image_shape], "task": texts(name)},
        )
        for name, spec in SPECS.items()
    ]
    *found, classes = call("c_api", last, [*calls, ("by_name", {"images": images[32, 32], "task": texts("shapes2")})])
    for name, answer in zip(SPECS, found, strict=True):
        assert_same_labels(answer["labels"], mixed.models[name].predict(images[SPECS[name].image_shape], verbose=0))
    expected = mixed.bank.predict(images[32, 32], "shapes2")
    np.testing.assert_allclose(classes["probabilities"][:, :2], expected, rtol=0, atol=1e-5)
    order = ["shapes4", "shapes2", "roads", "fields", "paths", "lakes"]
    assert [entry["task"] for entry in read_description(last)["tasks"]] == order
    base, tables, _ = read_export(last)
    assert list(base.heads) == [SPECS["roads"], SPECS["fields"], SPECS["lakes"]] == list(tables.head_specs)
    with pytest.raises(PackError, match="There are two tasks named 'paths'"):
        add_tasks(tmp_path, [packs["paths"]])


def test_what_cannot_be_served_is_refused(mixed, tmp_path):
    roads, shapes = mixed.packs[:2]
    short = with_arrays(roads, head={name: value for name, value in roads.head.items() if name != "logits/bias"})
    with pytest.raises(PackError, match="The head of task 'roads' has no 'logits/bias'"):
        export_saved_model(mixed.backbone, [short], tmp_path)
    strange = dataclasses.replace(roads, head_spec=dataclasses.replace(SPECS["roads"], kind="pyramid"))
    with pytest.raises(PackError, match="has a head that this base cannot take: .*'pyramid'"):
        export_saved_model(mixed.backbone, [strange], tmp_path)
    with pytest.raises(
        ExportError, match="SavedModels have no signature for that. They hold tasks of the problems class"
    ):
        export_saved_model(mixed.backbone, [dataclasses.replace(shapes, problem="depth")], tmp_path)
    with pytest.raises(ExportError, match="SavedModels have no signature for that"):
        export_saved_model(mixed.backbone, [dataclasses.replace(roads, problem="class")], tmp_path)
    assert not list(tmp_path.iterdir())


def test_memory_follows_the_size_of_the_task_and_its_classes():
    assert image_bytes(CLASSES, 32) == 32 * 32 * 512
    assert image_bytes(Family("map", HeadSpec("fpn", 11, 32, (160, 224))), 32) == 160 * 224 * 512
    assert image_bytes(Family("map", HeadSpec("fpn", 150, 32, (160, 224))), 32) == 160 * 224 * 8 * 150


def test_a_problem_says_what_is_served(mixed, tmp_path):
    """No line of the exports knows images of any number of classes."""
    classes = [pack for pack in mixed.packs if pack.problem == "class"]
    packs = [dataclasses.replace(renamed(pack, f"tags {pack.task}"), problem="multilabel") for pack in classes]
    bank = TaskBank(mixed.backbone).add(packs[0]).add(packs[1])
    folder = export_saved_model(mixed.backbone, packs, tmp_path)
    images, names = images_of((32, 32), 3), ["tags shapes4", "tags shapes2", "fish"]
    files = texts(*(encode(image, "PNG") for image in images))
    calls = [("tag_32x32", {"images": images}), ("tag", {"image_bytes": files})]
    found = call("v2", folder, [(signature, {**inputs, "task": texts(*names)}) for signature, inputs in calls])
    for answer in found:
        assert answer["task_ok"].tolist() == [True, True, False] and answer["image_ok"].all()
        for row, (name, classes) in enumerate(zip(names[:2], (4, 2), strict=True)):
            expected = bank.predict(images[row : row + 1], name)[0]
            # Not a softmax.
            assert not np.isclose(expected.sum(), 1)
            np.testing.assert_allclose(answer["probabilities"][row, :classes], expected, rtol=0, atol=1e-5)
            assert not answer["probabilities"][row, classes:].any()
        assert not answer["probabilities"][2].any()


def test_verify_finds_label_maps_that_differ(mixed, tmp_path):
    files = []
    for index, kind in enumerate(("PNG", "JPEG", "BMP")):
        files.append(tmp_path / f"{index}.{kind.lower()}")
        files[-1].write_bytes(encode(picture(70 + index, 90, seed=index), kind))
    files.append(tmp_path / "wide.png")
    files[-1].write_bytes(encode(picture(60, 60), "PNG", icc_profile=profile()))
    model = mixed.loaded()
    found = compare_answers(model, mixed.bank, "lakes", files, batch_size=3)
    assert found.good and found.refused == 1 and found.whole
    assert max(found.prepared, found.files) <= 1e-4
    assert found.text.startswith("lakes: labels: 0.00")
    # Nothing was compared.
    assert not compare_answers(model, mixed.bank, "lakes", files[-1:]).good
    # Another task under its name.
    bank = TaskBank(mixed.backbone).add(renamed(mixed.packs[-1], "roads"))
    found = compare_answers(model, bank, "roads", files[:1])
    assert not found.good and found.prepared > 0.01 and found.files == 0


@pytest.mark.parametrize(
    ("change", "good"),
    [({}, True), ({"prepared": 2e-4}, False), ({"files": 2e-4}, False), ({"refused": 1, "files": None}, False)]
    + [({"whole": False}, False), ({"whole": False, "prepared": 1e-6, "files": 1e-6}, True)],
)
def test_what_counts_as_good(change, good):
    fields = {"task": "a", "answer": "labels", "prepared": 9e-5, "files": 9e-5, "whole": True, "refused": 0}
    assert AnswersComparison(**fields | {"export_ms": 1.0, "bank_ms": 1.0} | change).good is good


@pytest.mark.slow
def test_label_maps_of_photographs(realdata, tmp_path):
    """A network of usual size: what a server's loader makes of files, against the trained model."""
    weights = str(realdata / "weights/mobilenet_v2_imagenet_notop.weights.h5")
    backbone = load_backbone("mobilenet_v2", weights=weights, image_size=96)
    spec, augment = HeadSpec("fpn", 5, 32, (160, 224)), "resize(160,224)"
    model = segments_model(backbone, 3, spec)
    pack = segments_pack(model, backbone, "roads", 5, augment)
    files = sorted((realdata / "camvid11/test/images").iterdir())[::40]
    originals = [decode_image(path.read_bytes(), path.name) for path in files]
    images = np.stack([apply_operations(parse_augment(augment), original) for original in originals])
    folder, named = export_saved_model(backbone, [pack], tmp_path), texts(*["roads"] * len(files))
    calls = [
        ("segment_160x224", {"images": images, "task": named}),
        ("segment", {"image_bytes": texts(*(path.read_bytes() for path in files)), "task": named}),
    ]
    prepared, from_files = call("c_api", folder, calls)
    assert_same_labels(prepared["labels"], model.predict(images, verbose=0))
    assert from_files["image_ok"].all() and len(np.unique(prepared["labels"])) > 1
    for labels, original, png in zip(prepared["labels"], originals, from_files["png_bytes"], strict=True):
        expected = at_own_size(labels, parse_augment(augment), original.shape[:2])
        with Image.open(io.BytesIO(png)) as image:
            assert np.mean(np.asarray(image) != expected) <= 1e-4
