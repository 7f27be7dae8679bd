"""What an export answers, through each of the loaders."""

import numpy as np
import pytest

from piggyback_tf.data import decode_image, parse_augment
from tests.export.helpers import LOADERS, call, encode, huge_jpeg, huge_png, picture, texts
from tests.packs.helpers import VARIANTS

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
# Unknown tasks between others, and no order.
TASKS = np.array([3, 0, 5, -1, 1, 4, 2, 99, 0, 1], np.int32)
NAMES = [list(VARIANTS)[task] if 0 <= task < len(VARIANTS) else "fish" for task in TASKS]
GOOD = np.array([name != "fish" for name in NAMES])
FILES = [encode(picture(9 + 5 * index, 30, seed=index), "JPEG" if index % 2 else "PNG") for index in range(10)]
BROKEN = {"cut": FILES[1][:200], "none": b"", "garbage": b"abc", "large JPEG": huge_jpeg(), "large PNG": huge_png()}
CASES = [("packed", loader) for loader in LOADERS] + [("unpacked", "v2"), ("unpacked", "c_api")]
# One in this process and one in a process of its own are tried each time.
QUICK = [("packed", "v2"), ("packed", "c_api")]


def _calls(dtype):
    images = IMAGES.astype(dtype)
    calls = {
        "numbers": ("serving_default", {"images": images, "task": TASKS}),
        "names": ("by_name", {"images": images, "task": texts(*NAMES)}),
        "files": ("encoded", {"image_bytes": texts(*FILES), "task": texts(*NAMES)}),
        "broken": (
            "encoded",
            {"image_bytes": texts(FILES[0], *BROKEN.values()), "task": texts(*["ternary"] * (1 + len(BROKEN)))},
        ),
        "nothing": ("serving_default", {"images": images[:0], "task": TASKS[:0]}),
        "no names": ("by_name", {"images": images[:0], "task": texts()}),
        "no files": ("encoded", {"image_bytes": texts(), "task": texts()}),
        "too few tasks": ("serving_default", {"images": images, "task": TASKS[:1]}),
        "too many names": ("by_name", {"images": images[:2], "task": texts(*NAMES)}),
        "too few names": ("encoded", {"image_bytes": texts(*FILES), "task": texts(NAMES[0])}),
        "small images": ("serving_default", {"images": images[:, :7], "task": TASKS}),
        "one image": ("serving_default", {"images": images[0], "task": TASKS[:1]}),
        "tasks in a table": ("serving_default", {"images": images, "task": TASKS[None]}),
        "type": ("serving_default", {"images": images.astype("float64"), "task": TASKS}),
    }
    if dtype == "float32":
        odd = images.copy()
        odd[0, 0, 0, 0], odd[1, 1, 1, 1], odd[2, 2, 2, 2] = np.nan, -1, 255.5
        calls["odd pixels"] = ("serving_default", {"images": odd, "task": TASKS})
    # Whatever went wrong before, the last answer is right.
    return calls | {"again": calls["numbers"]}


@pytest.fixture(
    scope="module",
    params=[pytest.param(case, marks=[pytest.mark.slow] * (case not in QUICK), id="-".join(case)) for case in CASES],
    name="answers",
)
def _answers(request, small):
    export, loader = request.param
    calls = _calls("uint8" if export == "packed" else "float32")
    found = call(loader, getattr(small, export), list(calls.values()))
    return dict(zip(calls, found, strict=True)), loader, export


@pytest.fixture(scope="module", name="expected")
def _expected(small):
    """The bank's probabilities, filled up with zeros, and zeros for unknown tasks."""
    expected = np.zeros([len(TASKS), max(len(pack.class_names) for pack in small.packs)], np.float32)
    for row, (image, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        if name != "fish":
            found = small.bank.predict(image[None], task=name)[0]
            expected[row, : len(found)] = found
    return expected


@pytest.mark.parametrize("kind", ["numbers", "names", "again"])
def test_a_mixed_batch_is_answered_as_by_the_bank(answers, expected, kind):
    found = answers[0][kind]
    np.testing.assert_allclose(found["probabilities"], expected, rtol=0, atol=1e-5)
    assert not found["probabilities"][expected == 0].any()
    np.testing.assert_array_equal(found["class_id"], np.where(GOOD, expected.argmax(axis=1), -1))
    np.testing.assert_array_equal(found["task_ok"], GOOD)


def test_files_are_answered_as_by_the_bank(answers, small):
    found, k = answers[0]["files"], 5 if answers[2] == "packed" else 9
    assert found["labels"].shape == found["scores"].shape == (len(TASKS), k)
    np.testing.assert_array_equal(found["task_ok"], GOOD)
    assert found["image_ok"].all()
    for row, name in enumerate(NAMES):
        best = []
        if name != "fish":
            image = decode_image(FILES[row], "file")
            for operation in parse_augment(small.bank.info(name)["eval_augment"]):
                image = operation.apply(image)
            best = small.bank.top_k(image[None], task=name, k=k)[0]
        best += [("", 0.0)] * (k - len(best))
        assert [label.decode() for label in found["labels"][row]] == [label for label, _ in best]
        np.testing.assert_allclose(found["scores"][row], [score for _, score in best], rtol=0, atol=1e-5)


def test_broken_files_are_flagged_and_the_others_answered(answers):
    found = answers[0]["broken"]
    assert found["image_ok"].tolist() == [True] + [False] * len(BROKEN)
    assert found["task_ok"].all()
    assert found["scores"][0].sum() == pytest.approx(1)
    assert not found["scores"][1:].any()
    assert set(found["labels"][1:].reshape(-1)) == {b""}


def test_an_empty_batch_has_an_empty_answer(answers):
    for kind in ("nothing", "no names"):
        assert answers[0][kind]["probabilities"].shape == (0, 7)
        assert answers[0][kind]["class_id"].shape == answers[0][kind]["task_ok"].shape == (0,)
    assert answers[0]["no files"]["labels"].shape[0] == answers[0]["no files"]["image_ok"].shape[0] == 0


@pytest.mark.parametrize(
    "kind, shapes",
    [
        ("too few tasks", "[10 8 8 3] [1]"),
        ("too many names", "[2 8 8 3] [10]"),
        ("too few names", "[10] [1]"),
        ("small images", "images must be [B, 8, 8, 3], not] [10 7 8 3]"),
        ("one image", "images must be [B, 8, 8, 3], not] [8 8 3]"),
        ("tasks in a table", "[10 8 8 3] [1 10]"),
    ],
)
def test_what_does_not_fit_together_is_an_error(answers, kind, shapes):
    found, loader, _ = answers
    assert isinstance(found[kind], str)
    # TensorFlow 1's session looks at shapes itself.
    assert shapes in found[kind] or (loader == "v1" and "Cannot feed value of shape" in found[kind])


def test_another_type_of_image_is_an_error(answers):
    found, loader, _ = answers
    if loader != "v1":  # Its session converts what it is fed.
        assert isinstance(found["type"], str)
        assert "double" in found["type"]


def test_pixels_that_are_no_colours_flag_their_rows(answers, expected):
    found, _, export = answers
    if export == "packed":
        assert "odd pixels" not in found  # Bytes are always colours.
        return
    found = found["odd pixels"]
    assert found["class_id"][:3].tolist() == [-1, -1, -1]
    assert not found["probabilities"][:3].any()
    assert found["task_ok"][:3].all()
    np.testing.assert_allclose(found["probabilities"][3:], expected[3:], rtol=0, atol=1e-5)
