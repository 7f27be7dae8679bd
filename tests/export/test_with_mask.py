"""The servable that takes a mask."""

import numpy as np
import pytest

from export.servable.layout import WeightLayout
from tests.export.helpers import call, texts

IMAGES = np.random.default_rng(3).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


def _inputs(pack, layout, images=IMAGES):
    norm = np.zeros(0, np.float32)
    if pack.norm:
        norm = layout.norm.flatten(pack.norm)
    return {
        "images": images,
        "mask": layout.pack_mask(pack).reshape(-1),
        "head": np.concatenate([pack.head["kernel"], pack.head["bias"][None]]),
        "norm": norm,
    }


@pytest.fixture(scope="module", params=["v2", "c_api"], name="found")
def _found(request, small):
    """The answers for each pack, and the errors for inputs that are wrong."""
    layout = WeightLayout.of(small.backbone)
    calls = {pack.task: ("with_mask", _inputs(pack, layout)) for pack in small.packs}
    inputs = calls["ternary"][1]
    calls["tasks"] = ("tasks", {})
    calls["all tasks"] = ("find_tasks", {"task": texts()})
    calls["some tasks"] = ("find_tasks", {"task": texts("ternary", "fish", "binary")})
    calls["short mask"] = ("with_mask", {**inputs, "mask": inputs["mask"][:-1]})
    calls["three planes"] = ("with_mask", {**inputs, "mask": np.tile(inputs["mask"], 2)[: 3 * layout.mask_bytes]})
    calls["short head"] = ("with_mask", {**inputs, "head": inputs["head"][1:]})
    calls["short norm"] = ("with_mask", {**inputs, "norm": np.zeros(1, np.float32)})
    calls["small images"] = ("with_mask", {**inputs, "images": IMAGES[:, :4]})
    calls["NaN in head"] = ("with_mask", {**inputs, "head": inputs["head"] * np.float32("nan")})
    answers = call(request.param, small.packed.parent / "with_mask" / small.packed.name, list(calls.values()))
    return dict(zip(calls, answers, strict=True)), request.param, layout.mask_bytes


def test_a_task_that_comes_with_the_call_is_answered_as_by_the_bank(found, small):
    for pack in small.packs:
        expected = small.bank.predict(IMAGES, task=pack.task)
        np.testing.assert_allclose(found[0][pack.task]["probabilities"], expected, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(found[0][pack.task]["class_id"], expected.argmax(axis=1))


def test_the_tasks_are_listed_with_their_classes(found, small):
    listed = found[0]["tasks"]
    assert [name.decode() for name in listed["names"]] == small.bank.names
    for row, pack in zip(listed["classes"], small.packs, strict=True):
        assert [name.decode() for name in row if name] == pack.class_names


@pytest.mark.parametrize("case", ["all tasks", "some tasks"])
def test_tasks_are_found_by_name(found, small, case):
    listed, packs = found[0][case], [p for p in small.packs if case == "all tasks" or p.task in ("ternary", "binary")]
    assert [name.decode() for name in listed["names"]] == [pack.task for pack in packs]
    for row, count, pack in zip(listed["classes"], listed["count"], packs, strict=True):
        assert [name.decode() for name in row[:count]] == pack.class_names


@pytest.mark.parametrize(
    "case, message",
    [
        ("short mask", "mask must be [{bits}], or [{twice}] if ternary, not"),
        ("three planes", "mask must be [{bits}], or [{twice}] if ternary, not"),
        ("short head", "head must be [10, C], not"),
        ("short norm", "for that of the base, not"),
        ("small images", "images must be [B, 8, 8, 3], not"),
    ],
)
def test_what_does_not_fit_is_an_error(found, case, message):
    answers, loader, bits = found
    assert isinstance(answers[case], str)
    # Python's loader compares shapes that are fixed before the graph does.
    assert message.format(bits=bits, twice=2 * bits) in answers[case] or (loader == "v2" and "shape" in answers[case])


def test_no_nan_is_answered(found):
    answer = found[0]["NaN in head"]
    assert not answer["probabilities"].any()
    assert set(answer["class_id"].tolist()) == {-1}
