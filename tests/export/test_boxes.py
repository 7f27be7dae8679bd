"""Tasks of classes, of segments and of boxes in one SavedModel, by each of the loaders."""

import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf

from export.saved_model import add_tasks, export_saved_model
from export.servable.compare_answers import compare_answers
from export.servable.folder import read_description
from export.servable.options import ExportOptions
from export.shared.same_boxes import strange_boxes
from piggyback_tf.data import boxes_at_own_size, decode_image, parse_augment
from piggyback_tf.data.augment import apply_operations
from piggyback_tf.packs import TaskBank
from piggyback_tf.problems import PROBLEMS
from tests.export.boxes import LABELS, SPECS, assert_same_boxes, packed
from tests.export.helpers import LOADERS, call, encode, picture, texts
from tests.export.test_segments import _turned
from tests.packs.helpers import renamed
from tests.packs.test_segments import images_of

# A task of the size, one of classes, one of another size, none, one of pixels, one more of the size, the first again.
NAMES = ["animals", "shapes4", "faces", "fish", "roads", "plants", "animals"]
# What takes seconds; a small export is asked every time.
CASES = [
    pytest.param(case, id="-".join(case), marks=pytest.mark.slow)
    for case in [*(("packed", loader) for loader in LOADERS), ("unpacked", "v2"), ("unpacked", "c_api")]
]
FILES = [
    encode(picture(80, 112, seed=1), "PNG"),
    encode(picture(50, 50, seed=2), "PNG"),
    encode(picture(41, 57, seed=3), "JPEG"),
    _turned(4),
    encode(picture(30, 30, seed=5), "PNG"),
    _turned(7),
    b"no image",
]


@pytest.fixture(scope="module", name="unpacked")
def _unpacked(found_boxes, tmp_path_factory):
    options = ExportOptions(cache="unpacked", image_dtype="float32", top_k=3)
    return export_saved_model(found_boxes.backbone, found_boxes.packs(), tmp_path_factory.mktemp("unpacked"), options)


@pytest.fixture(scope="module", params=CASES, name="answers")
def _answers(request, found_boxes):
    export, loader = request.param
    dtype = "uint8" if export == "packed" else "float32"
    images = {shape: images_of(shape, len(NAMES)).astype(dtype) for shape in ((24, 40), (32, 32))}
    named = texts(*NAMES)
    calls = {
        "boxes": ("detect_24x40", {"images": images[24, 40], "task": named}),
        "squares": ("detect_32x32", {"images": images[32, 32], "task": named}),
        "files": ("detect", {"image_bytes": texts(*FILES), "task": named}),
        "maps": ("segment_24x40", {"images": images[24, 40], "task": named}),
        "classes": ("by_name", {"images": images[32, 32], "task": named}),
        "none": ("detect_24x40", {"images": images[24, 40][:0], "task": texts()}),
        "no files": ("detect", {"image_bytes": texts(), "task": texts()}),
    }
    if export == "unpacked":
        odd = images[24, 40].copy()
        odd[0, 3, 3, 0], odd[2, 0, 0, 0] = np.nan, 256
        calls["odd pixels"] = ("detect_24x40", {"images": odd, "task": named})
    folder = found_boxes.packed if export == "packed" else request.getfixturevalue("unpacked")
    found = call(loader, folder, list(calls.values()))
    return dict(zip(calls, found, strict=True)), images


def assert_nothing(answer, row):
    """Checks that a row of answers holds no box."""
    assert answer["count"][row] == 0 and (answer["classes"][row] == -1).all()
    assert not answer["boxes"][row].any() and not answer["scores"][row].any()


def test_boxes_are_those_of_the_bank(answers, found_boxes):
    found, images = answers
    for kind, shape in (("boxes", (24, 40)), ("squares", (32, 32))):
        good = [name in SPECS and SPECS[name].image_shape == shape for name in NAMES]
        assert found[kind]["task_ok"].tolist() == good and any(good) and not all(good)
        assert found[kind]["image_ok"].all()
        shapes = {name: (value.shape[1:], value.dtype.name) for name, value in found[kind].items() if "_ok" not in name}
        assert shapes == {
            "boxes": ((100, 4), "float32"),
            "scores": ((100,), "float32"),
            "classes": ((100,), "int32"),
            "count": ((), "int32"),
        }
        for row, name in enumerate(NAMES):
            if good[row]:
                assert_same_boxes(packed(found[kind], row), found_boxes.predict(images[shape][row : row + 1], name)[0])
                assert found[kind]["count"][row] == (found[kind]["classes"][row] >= 0).sum() > 3
            else:
                assert_nothing(found[kind], row)


def test_every_box_is_one_that_the_trained_model_says(answers, found_boxes):
    """Before one of two is chosen: to 0.01 pixels and a score of 1e-5."""
    found, images = answers
    for kind, shape in (("boxes", (24, 40)), ("squares", (32, 32))):
        for row, name in enumerate(NAMES):
            if not found[kind]["task_ok"][row]:
                continue
            problem = PROBLEMS["boxes"](LABELS[: SPECS[name].classes], shape)
            raw = problem.raw_answer(found_boxes.model(name)(images[shape][row : row + 1], training=False))
            boxes, scores = raw["boxes"].numpy()[0], raw["scores"].numpy()[0]
            for own in packed(found[kind], row)[: found[kind]["count"][row]]:
                near = np.abs(boxes - own[:4]).max(axis=1) <= 0.01
                assert (np.abs(scores[near, int(own[4])] - own[5]) <= 1e-5).any()


def test_files_are_answered_in_their_own_pixels(answers, found_boxes):
    found = answers[0]["files"]
    assert found["task_ok"].tolist() == [name in SPECS for name in NAMES]
    assert found["image_ok"].tolist() == [True] * 6 + [False]
    for row, name in enumerate(NAMES):
        if name not in SPECS or row == 6:
            assert_nothing(found, row)
            continue
        original = decode_image(FILES[row], "file")
        operations = parse_augment(found_boxes.pack(name).eval_augment)
        expected = found_boxes.predict(apply_operations(operations, original)[None], name)[0]
        expected[:, :4] = boxes_at_own_size(expected[:, :4], operations, original.shape[:2])
        assert_same_boxes(packed(found, row), expected, pixels=0.03)
        there = found["boxes"][row][: found["count"][row]]
        assert there.min() >= 0 and (there[:, 2:] <= original.shape[:2]).all()


def test_other_tasks_are_answered_beside_them(answers, found_boxes):
    found, images = answers
    for kind, name, shape in (("maps", "roads", (24, 40)), ("classes", "shapes4", (32, 32))):
        row = NAMES.index(name)
        assert found[kind]["task_ok"].tolist() == [own == name for own in NAMES]
        expected = found_boxes.predict(images[shape][row : row + 1], name)[0]
        if kind == "maps":
            assert np.mean(found[kind]["labels"][row] != expected) <= 1e-3
        else:
            np.testing.assert_allclose(found[kind]["probabilities"][row], expected, rtol=0, atol=1e-5)


def test_nothing_and_pixels_that_are_no_colours(answers):
    found, images = answers
    assert found["none"]["boxes"].shape == (0, 100, 4) and found["no files"]["image_ok"].shape == (0,)
    if images[24, 40].dtype == np.uint8:
        assert "odd pixels" not in found  # Bytes are always colours.
        return
    odd = found["odd pixels"]
    assert odd["image_ok"].tolist() == [False, True, False] + [True] * 4
    for row in (0, 2):
        assert_nothing(odd, row)
    assert odd["count"][6] == found["boxes"]["count"][6] > 0


@pytest.mark.slow
def test_the_description_says_what_is_there(found_boxes):
    content = read_description(found_boxes.packed)
    assert [entry.get("problem", "class") for entry in content["tasks"]] == [
        pack.problem for pack in found_boxes.packs()
    ]
    ((listed,),) = [call("v2", found_boxes.packed.parent / "with_mask/1", [("find_tasks", {"task": texts()})])]
    signatures = {pack.task: {"class": "encoded", "map": "segment", "boxes": "detect"}[pack.problem]
                  for pack in found_boxes.packs()}  # fmt: skip
    listed = zip(listed["names"], listed["signature"], strict=True)
    assert {name.decode(): signature.decode() for name, signature in listed} == signatures


def test_a_small_export_answers_and_verify_says_so(boxed, tmp_path):
    folder = export_saved_model(boxed.backbone, boxed.packs("animals"), tmp_path / "out", ExportOptions(cache="packed"))
    model, images = tf.saved_model.load(str(folder)), images_of((24, 40), 2)
    assert set(model.signatures) == {"detect", "detect_24x40"}
    found = model.signatures["detect_24x40"](images=tf.constant(images), task=tf.constant(["animals", "fish"]))
    assert found["task_ok"].numpy().tolist() == [True, False]
    assert_same_boxes(packed(found, 0), boxed.predict(images[:1], "animals")[0])
    (tmp_path / "a.png").write_bytes(encode(picture(70, 90), "PNG"))
    compared = compare_answers(model, boxed.bank_with("animals"), "animals", [tmp_path / "a.png"])
    assert compared.good and (compared.prepared, compared.files) == (0, 0)


@pytest.mark.slow
def test_a_task_is_added_where_its_network_is_known(found_boxes, tmp_path):
    first = export_saved_model(
        found_boxes.backbone, found_boxes.packs("animals"), tmp_path, ExportOptions(cache="packed")
    )
    folder = add_tasks(first, [renamed(found_boxes.pack("animals"), "more")])
    images = images_of((24, 40), 2)
    request = {"images": images, "task": texts("more", "fish")}
    (found,) = call("v2", folder, [("detect_24x40", request)])
    assert found["task_ok"].tolist() == [True, False]
    assert_same_boxes(packed(found, 0), found_boxes.predict(images[:1], "animals")[0])


@pytest.mark.slow
def test_tasks_of_boxes_are_added_to_an_export_of_classes(found_boxes, tmp_path):
    export_saved_model(found_boxes.backbone, [found_boxes.pack("shapes4")], tmp_path, ExportOptions(cache="packed"))
    add_tasks(tmp_path, [found_boxes.pack("animals"), found_boxes.pack("roads")], backbone=found_boxes.backbone)
    folder = add_tasks(tmp_path, [found_boxes.pack("faces")], backbone=found_boxes.backbone)
    calls = [
        (f"detect_{shape[0]}x{shape[1]}", {"images": images_of(shape, 1), "task": texts(name)})
        for name, shape in (("animals", (24, 40)), ("faces", (32, 32)))
    ]
    for (_, request), name, answer in zip(calls, ("animals", "faces"), call("c_api", folder, calls), strict=True):
        assert_same_boxes(packed(answer, 0), found_boxes.predict(request["images"], name)[0])


@pytest.mark.slow
def test_verify_finds_boxes_that_differ(found_boxes, tmp_path):
    files = []
    for index, kind in enumerate(("PNG", "JPEG", "BMP")):
        files.append(tmp_path / f"{index}.{kind.lower()}")
        files[-1].write_bytes(encode(picture(70 + index, 90, seed=index), kind))
    model = found_boxes.loaded()
    found = compare_answers(model, found_boxes.bank_with("faces"), "faces", files, batch_size=2)
    assert found.good and found.whole and (found.prepared, found.files) == (0, 0)
    assert found.text.startswith("faces: boxes: 0.0000 % differ with pixels")
    # Another task under its name.
    bank = TaskBank(found_boxes.backbone).add(renamed(found_boxes.pack("plants"), "animals"))
    found = compare_answers(model, bank, "animals", files[:1])
    assert not found.good and found.prepared > 0.1 and found.files == 0


@pytest.mark.slow
def test_many_threads_get_the_answers_of_their_tasks(found_boxes):
    """Requests of classes, pixels and boxes, each of several tasks, at once on one SavedModel and one bank."""
    signatures, shapes = found_boxes.loaded().signatures, {"shapes4": (32, 32), "roads": (24, 40)}
    shapes |= {name: spec.image_shape for name, spec in SPECS.items()}
    images = {shape: images_of(shape, 6) for shape in set(shapes.values())}
    expected = {name: found_boxes.predict(images[shape], name) for name, shape in shapes.items()}
    groups = {"by_name": ["shapes4"], "segment_24x40": ["roads"], "detect_32x32": ["faces"]}
    groups["detect_24x40"] = ["animals", "plants"]

    def same(name, answer, row, place):
        wanted = expected[name][place]
        if name in SPECS:
            return strange_boxes(packed(answer, row), wanted)[0] == 0
        if name == "roads":
            return np.mean(answer["labels"][row].numpy() != wanted) <= 1e-3
        return np.allclose(answer["probabilities"][row].numpy(), wanted, rtol=0, atol=1e-5)

    def ask(seed):
        rng = np.random.default_rng(seed)
        signature = sorted(groups)[rng.integers(len(groups))]
        names = [groups[signature][place] for place in rng.integers(len(groups[signature]), size=3)]
        places = rng.integers(6, size=3)
        request = {"images": tf.constant(images[shapes[names[0]]][places]), "task": tf.constant(names)}
        answer = signatures[signature](**request)
        name, place = names[0], places[0]
        banked = found_boxes.predict(images[shapes[name]][[place]], name)[0]
        if name in SPECS:
            right = strange_boxes(banked, expected[name][place])[0] == 0
        else:
            right = np.allclose(banked, expected[name][place], rtol=0, atol=1e-5 if name == "shapes4" else 0)
        return [same(own, answer, row, at) for row, (own, at) in enumerate(zip(names, places, strict=True))], right

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(120)))
    assert all(all(rows) and right for rows, right in found)


def row_of(score, *box, number=0):
    return [*box, number, score]


@pytest.mark.parametrize(
    ("found", "expected", "strange"),
    [
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.9, 0, 0, 10, 10.005)], 0),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.9, 0, 0, 10, 10.02)], 2),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.9, 0, 0, 10, 10, number=1)], 2),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.90002, 0, 0, 10, 10)], 2),
        ([row_of(0.9, 0, 0, 10, 10)], [], 1),
        # Hardly a box at all.
        ([row_of(0.05005, 0, 0, 10, 10)], [], 0),
        # Two that are as sure, of which one is kept, and one that only the other leaves.
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.90005, 0, 2, 10, 12)], 0),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.9003, 0, 2, 10, 12)], 2),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.90005, 0, 2, 10, 12), row_of(0.8, 0, 0, 10, 8)], 0),
        ([row_of(0.9, 0, 0, 10, 10)], [row_of(0.90005, 0, 2, 10, 12), row_of(0.8, 30, 0, 40, 8)], 1),
        # An overlap of 0.6, that is 7.5 of 12.5, and one of 0.5.
        ([row_of(0.9, 0, 0, 10, 10), row_of(0.8, 0, 2.5, 10, 12.5)], [row_of(0.9, 0, 0, 10, 10)], 0),
        ([row_of(0.9, 0, 0, 10, 10), row_of(0.8, 0, 10 / 3, 10, 40 / 3)], [row_of(0.9, 0, 0, 10, 10)], 1),
        # Counterparts are of one box each.
        ([row_of(0.9, 0, 0, 10, 10), row_of(0.9, 0, 0, 10, 10)], [row_of(0.9, 0, 0, 10, 10)], 1),
    ],
)
def test_which_differences_rounding_may_make(found, expected, strange):
    found, expected = (np.reshape(np.array(each, float), [-1, 6]) for each in (found, expected))
    assert strange_boxes(found, expected) == strange_boxes(expected, found) == (strange, len(found) + len(expected))
