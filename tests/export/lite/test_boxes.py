"""Tasks of boxes on devices: what boxes are chosen of, and the choice outside of the model."""

import functools
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from export.edge.piggyback_edge import Base, EdgeError, Model, Task, boxes_of_points, chosen_boxes, main
from export.lite import plain
from export.lite.checks import run_outputs
from export.lite.compare import compare_lite, describe, enter_task, open_export
from export.lite.judged import JudgedAnswer, judge_of
from export.lite.options import LiteOptions
from export.lite.patch import write
from export.litert import export_litert
from export.shared.errors import ExportError
from piggyback_tf.data import boxes_at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.head_spec import HeadSpec
from piggyback_tf.packs import TaskBank
from piggyback_tf.problems import PROBLEMS
from piggyback_tf.problems.heads.fcos import fcos_answers
from tests.export.boxes import LABELS, SPECS, assert_same_boxes
from tests.export.helpers import encode, picture
from tests.export.lite.metadata import read_metadata
from tests.export.lite.test_docs import TEXT, _run
from tests.packs.helpers import renamed
from tests.packs.test_segments import images_of

# The largest difference of a side in pixels, and of a score, before the choice. The heads are random ones.
LIMITS = {"none": (0.01, 1e-5), "float16": (0.1, 5e-3), "int8": (1.5, 0.1)}
SLOW = pytest.mark.slow
QUANTIZE = ["none", pytest.param("float16", marks=SLOW), pytest.param("int8", marks=SLOW)]


def calibration(spec, packs, count):
    """Returns images for the ranges of int8."""
    return [images_of(pack.image_shape, 24).astype(np.float32) for pack in packs]


@pytest.fixture(scope="module", name="export")
def _export(boxed, tmp_path_factory):
    """A function of a quantisation, a design and names of tasks that returns the folder of an export."""

    @functools.cache
    def make(quantize, design, names, max_classes):
        folder = tmp_path_factory.mktemp("boxes") / "out"
        data = "images" if quantize == "int8" else ""
        options = LiteOptions(quantize=quantize, design=design, max_classes=max_classes, representative_data=data)
        with pytest.MonkeyPatch.context() as patches:
            for module in (write, plain):
                patches.setattr(module, "representative_images", calibration)
            export_litert(boxed.backbone, boxed.packs(*names), folder, options)
        return folder

    return lambda quantize="none", design="patch", names=("shapes4", "animals"), room=0: make(
        quantize, design, names, room
    )


def installed(folder, name):
    """Returns a task and the content of a model with it."""
    base = Base.load(folder / "base.tflite")
    task, model = Task.load(folder / f"{name}.edge", base.manifest), Model(base)
    model.install(task)
    return task, bytes(model.data)


def raw_of(boxed, name, images):
    """Returns boxes and scores of all points, as the trained model says them."""
    spec = SPECS[name]
    problem = PROBLEMS["boxes"](LABELS[: spec.classes], spec.image_shape)
    return [value.numpy() for value in problem.raw_answer(boxed.model(name)(images, training=False)).values()]


def assert_same_raw(boxed, name, images, outputs, quantize):
    """Checks what boxes are chosen of against the trained model."""
    spec, (pixels, score) = SPECS[name], LIMITS[quantize]
    found = boxes_of_points(outputs["scores"][..., : spec.classes], outputs["sides"], spec.image_shape)
    boxes, scores = raw_of(boxed, name, images)
    assert found[0].shape == boxes.shape and found[1].shape == scores.shape and scores.std() > 0.1
    assert np.abs(found[0] - boxes).max() <= pixels
    there = (found[1] > 0) & (scores > 0)
    assert np.abs(found[1] - scores)[there].max() <= score and there.mean() > 0.3
    if quantize == "none":
        assert np.array_equal(found[1] > 0, scores > 0)


@pytest.mark.parametrize("quantize", QUANTIZE)
def test_a_patched_base_says_of_points_what_the_trained_model_says(boxed, export, quantize):
    names = ("animals",) if quantize == "none" else ("animals", "faces")
    folder = export(quantize, names=("shapes4", *names))
    for name in names:
        task, content = installed(folder, name)
        height, width = SPECS[name].image_shape
        images = images_of((height, width), 3)
        assert (task.answer, task.problem, task.signature.name) == ("boxes", "boxes", f"fcos4_{height}x{width}")
        outputs = run_outputs(content, images.astype(np.float32), task.signature.name)
        assert outputs["scores"].shape == (3, 4, 8 if name == "animals" else 4, SPECS[name].classes)
        assert_same_raw(boxed, name, images, outputs, quantize)
        found = task.boxes(outputs["scores"], outputs["sides"], content)
        assert found.shape == (3, 100, 6) and found.dtype == np.float32
        for own, expected in zip(found, boxed.predict(images, name), strict=True):
            if quantize == "none":
                assert_same_boxes(own, expected)
    task, content = installed(folder, "shapes4")
    images = images_of((32, 32), 2)
    (output,) = run_outputs(content, images.astype(np.float32), task.signature.name).values()
    limit = {"none": 1e-5, "float16": 5e-3, "int8": 0.1}[quantize]
    assert np.abs(task.probabilities(output, content) - boxed.predict(images, "shapes4")).max() < limit


@pytest.mark.slow
@pytest.mark.parametrize("quantize", list(LIMITS))
def test_a_model_of_one_task_says_the_same(boxed, export, quantize):
    path = export(quantize, "plain", ("faces", "animals")) / "animals.tflite"
    images = images_of((24, 40), 3)
    outputs = run_outputs(path.read_bytes(), images.astype(np.float32))
    assert set(outputs) == {"scores", "sides"}
    assert_same_raw(boxed, "animals", images, outputs, quantize)
    (graph,) = read_metadata(path.read_bytes()).tables(3)
    described = {output.text(0): output.tables(6) for output in graph.tables(3)}
    assert set(described) == {"scores", "sides"} and described["scores"][0].text(0) == "labels.txt"


@pytest.mark.slow
def test_scores_and_sides_have_scales_of_their_own(export):
    """They are never in one tensor, whose scale would be that of the sides, in pixels."""
    interpreter = Interpreter(
        model_content=installed(export("int8", names=("animals",)), "animals")[1],
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    details = [each for each in interpreter.get_tensor_details() if each["dtype"] == np.int8]
    places = [each for each in details if each["shape"].tolist()[:3] == [1, 4, 8]]
    scales = {
        channels: {each["quantization"][0] for each in places if each["shape"][-1] == channels} for channels in (3, 7)
    }
    assert scales[3] and not scales[7]


@pytest.mark.slow
def test_a_later_task_with_fewer_classes_than_there_is_room_for(boxed, export, tmp_path):
    folder = export(names=("animals",), room=5)
    write.add_patches(boxed.backbone, [boxed.pack("plants")], folder / "base.tflite", tmp_path, LiteOptions())
    (tmp_path / "base.tflite").write_bytes((folder / "base.tflite").read_bytes())
    (tmp_path / "manifest.bin").write_bytes((folder / "manifest.bin").read_bytes())
    task, content = installed(tmp_path, "plants")
    images = images_of((24, 40), 2)
    outputs = run_outputs(content, images.astype(np.float32), task.signature.name)
    assert outputs["scores"].shape[-1] == 5
    assert_same_raw(boxed, "plants", images, outputs, "none")
    with pytest.raises(ExportError, match="has a head of kind 'fcos' for images of 32x32 pixels"):
        write.add_patches(boxed.backbone, [boxed.pack("faces")], folder / "base.tflite", tmp_path, LiteOptions())


def test_what_cannot_be_is_refused(boxed, export, tmp_path):
    task, content = installed(export(), "animals")
    images = images_of((24, 40), 1)
    outputs = run_outputs(content, images.astype(np.float32), task.signature.name)
    scores, sides = outputs["scores"], outputs["sides"]
    with pytest.raises(EdgeError, match="of the problem 'boxes': ask for its boxes"):
        task.probabilities(scores, content)
    with pytest.raises(EdgeError, match="Not task 'animals' is on the model"):
        task.boxes(scores, sides, installed(export(), "shapes4")[1])
    for wrong in (
        (scores[..., :2], sides),
        (scores[:, :2], sides[:, :2]),
        (scores, sides[..., :3]),
        (scores[0], sides),
    ):
        with pytest.raises(EdgeError, match="which is not the model's"):
            task.boxes(*wrong, content)
    with pytest.raises(EdgeError, match="not finite"):
        task.boxes(scores, sides * np.nan, content)
    with pytest.raises(ExportError, match="The designs switch and input take the weights of one Dense layer"):
        export_litert(boxed.backbone, [boxed.pack("animals")], tmp_path / "out", LiteOptions(design="switch"))


def boxes_of_file(boxed, content):
    """Returns the boxes of a file for the task animals in its own pixels, by the bank; the surest first."""
    operations, original = parse_augment("resize(24,40)"), decode_image(content, "photo")
    found = boxed.predict(apply_operations(operations, original)[None], "animals")[0]
    found[:, :4] = boxes_at_own_size(found[:, :4], operations, original.shape[:2])
    return found[found[:, 4] >= 0]


@pytest.mark.slow
def test_the_example_of_the_document(boxed, export, tmp_path):
    folder, photo = tmp_path / "device", encode(picture(48, 80, seed=3), "PNG")
    shutil.copytree(export(), folder)
    (folder / "animals.edge").rename(folder / "cells.edge")
    (folder / "slide.jpg").write_bytes(photo)
    section = TEXT.split("\n### From a photo to boxes\n")[1].split("\n#")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    lines, expected = _run(code, folder).splitlines(), boxes_of_file(boxed, photo)
    assert len(lines) == len(expected) > 1
    top, left, bottom, right = expected[0, :4]
    label, score = LABELS[int(expected[0, 4])], expected[0, 5]
    assert lines[0] == f"{label} {score:.2f}: {left:.0f}, {top:.0f} to {right:.0f}, {bottom:.0f}"


def test_the_command_says_boxes_in_pixels_of_the_file(boxed, export, tmp_path, capsys):
    path = tmp_path / "photo.png"
    photo = encode(picture(48, 80, seed=3), "PNG")
    path.write_bytes(photo)
    assert main(["predict", str(export() / "base.tflite"), str(export() / "animals.edge"), str(path)]) == 0
    told = capsys.readouterr().out
    found = boxes_of_file(boxed, photo)
    sure = found[found[:, 5] >= 0.3]
    first = "{} {:.4f} ({:.1f}, {:.1f} to {:.1f}, {:.1f})".format(
        LABELS[int(sure[0, 4])], sure[0, 5], *sure[0, [1, 0, 3, 2]]
    )
    assert told.startswith(f"{path}: {first}") and told.count(" to ") == len(sure) > 1
    assert (
        main(["predict", str(export() / "base.tflite"), str(export() / "animals.edge"), "--output_dir=x", str(path)])
        == 2
    )
    assert "finds no label maps" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("design", ["patch", "plain"])
def test_verify_compares_boxes(boxed, export, design, tmp_path):
    files = []
    for index in range(3):
        files.append(tmp_path / f"{index}.png")
        files[-1].write_bytes(encode(picture(50, 70 + index, seed=index), "PNG"))
    folder = export(design=design, names=("animals", "faces"))
    opened = open_export(folder / ("base.tflite" if design == "patch" else "animals.tflite"), boxed.backbone)
    found = compare_lite(opened, boxed.bank_with("faces"), boxed.pack("faces"), files)
    assert (
        found.good and found.agreement == 1 and found.difference == 0 and "boxes agrees on 100.00%" in describe(found)
    )
    bank = TaskBank(boxed.backbone).add(renamed(boxed.pack("plants"), "animals"))
    other = compare_lite(opened, bank, boxed.pack("animals"), files)
    assert not other.good and other.difference > 1 and "are not those of the bank" in other.fault
    enter_task(opened, boxed.pack("faces"))


@pytest.mark.slow
def test_errors_are_measured_where_boxes_lie_beside_the_images(boxed, tmp_path):
    pack, operations = boxed.pack("animals"), parse_augment("resize(24,40)")
    (tmp_path / "JPEGImages").mkdir()
    file = tmp_path / "JPEGImages" / "photo.png"
    file.write_bytes(encode(picture(48, 80), "PNG"))
    none = np.tile(np.array([0, 0, 0, 0, -1, 0], np.float32), (100, 1))
    expected = none.copy()
    expected[0] = top, left, bottom, right, label, _ = 3, 4, 20, 33, 1, 0.9
    judge = judge_of(pack, operations)
    judge.add(file, JudgedAnswer(none), expected)
    assert judge.errors() is None
    # The box is right, twice as large in the file; nothing else is there.
    edges = f"<ymin>{2 * top + 1}</ymin><xmin>{2 * left + 1}</xmin><ymax>{2 * bottom}</ymax><xmax>{2 * right}</xmax>"
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "photo.xml").write_text(
        "<annotation><size><height>48</height><width>80</width></size>"
        f"<object><name>{pack.class_names[label]}</name><bndbox>{edges}</bndbox></object></annotation>"
    )
    judge = judge_of(pack, operations)
    judge.add(file, JudgedAnswer(none), expected)
    assert judge.errors() == pytest.approx((100, 0)) and judge.error_name == "error (100 % less AP)"


def test_boxes_are_chosen_as_by_the_trained_model():
    """To the last bit: in numpy as by TensorFlow."""
    rng = np.random.default_rng(0)
    for shape, grid, classes in (((24, 40), (4, 8), 3), ((37, 61), (5, 7), 9), ((96, 128), (12, 16), 1)):
        problem = PROBLEMS["boxes"](tuple("abcdefghi"[:classes]), shape)
        logits = rng.normal(-1, 2, (2, *grid, classes + 4)).astype("f4")
        parts = [tf.constant(logits[..., :classes]), tf.constant(logits[..., classes:])]
        raw = {name: value.numpy() for name, value in fcos_answers(parts, HeadSpec("fcos", classes, 4, shape)).items()}
        found = chosen_boxes(raw["scores"], raw["sides"], shape)
        expected = problem.predicted(problem.answer(tf.constant(logits))).numpy()
        assert np.array_equal(found, expected) and (found[..., 4] >= 0).any()


def test_of_equally_sure_boxes_the_first_class_and_the_first_point_come_first():
    scores, sides = np.zeros((1, 4, 4, 2), "f4"), np.full((1, 4, 4, 4), 3, "f4")
    scores[0, 1, 1], scores[0, 2, 2, 0], scores[0, 3, 3, 1] = 0.5, 0.5, 0.05
    found = chosen_boxes(scores, sides, (32, 32))[0]
    # A score that is not above the least is none.
    assert (found[:4, 4].tolist(), found[:4, 0].tolist()) == ([0, 0, 1, -1], [9, 17, 9, 0])
