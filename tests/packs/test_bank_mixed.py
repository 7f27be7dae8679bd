"""Batches of several tasks, the most probable classes, and what two masks have in common."""

import numpy as np
import pytest

from piggyback_tf.packs import TaskBank
from piggyback_tf.packs.compare import compare_masks
from tests.packs.helpers import VARIANTS, pack_of, packs_of_all_kinds, small_backbone, trained_model, with_arrays

IMAGES = np.random.default_rng(1).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
NAMES = ["binary", "ternary", "binary", "some_layers", "classifier_only", "ternary", "binary", "binary", "binary"]


@pytest.fixture(scope="module", name="packs")
def _packs():
    backbone = small_backbone()
    return backbone, packs_of_all_kinds(backbone)


@pytest.fixture(scope="module", name="bank")
def _bank(packs):
    bank = TaskBank(packs[0])
    for pack in packs[1]:
        bank.add(pack)
    return bank


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_each_image_is_answered_by_its_task(bank, batch_size, kind):
    found = bank.predict(IMAGES, task=kind(NAMES), batch_size=batch_size)
    assert isinstance(found, list)
    assert [row.shape for row in found] == [(len(bank.info(name)["class_names"]),) for name in NAMES]
    assert {row.dtype for row in found} == {np.dtype("float32")}
    for name in set(NAMES):
        places = [index for index, other in enumerate(NAMES) if other == name]
        alone = bank.predict(IMAGES[places], task=name, batch_size=batch_size)
        np.testing.assert_array_equal(np.stack([found[index] for index in places]), alone)


def test_names_must_fit_the_images(bank):
    assert bank.predict(IMAGES[:0], task=[]) == []
    for count in (8, 10, 0):
        with pytest.raises(ValueError, match=f"one for each image. Received: {count} names for 9 images"):
            bank.predict(IMAGES, task=(NAMES * 2)[:count])
    with pytest.raises(ValueError, match="Unknown task 'fish'"):
        bank.predict(IMAGES, task=[*NAMES[:8], "fish"])


def test_the_most_probable_classes(bank):
    probabilities = bank.predict(IMAGES, task="some_layers")
    found = bank.top_k(IMAGES, task="some_layers", k=2)
    assert len(found) == len(IMAGES)
    for row, best in zip(probabilities, found, strict=True):
        order = sorted(range(6), key=lambda index: -row[index])[:2]
        assert best == [(f"class {index}", float(row[index])) for index in order]
    mixed = bank.top_k(IMAGES, task=NAMES)
    # The task of "binary" has two classes.
    assert [len(best) for best in mixed] == [min(5, len(bank.info(name)["class_names"])) for name in NAMES]
    assert mixed[3] == bank.top_k(IMAGES[3:4], task="some_layers")[0]
    assert bank.top_k(IMAGES[:0], task="binary") == []
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        bank.top_k(IMAGES, task="binary", k=0)


def test_equal_probabilities_come_in_the_order_of_the_classes(packs):
    backbone, _ = packs
    # So many classes, of two probabilities in turn, that a sort that is not stable mixes them up.
    pack = pack_of(trained_model(backbone, classes=40), backbone, classes=40)
    head = {"kernel": np.zeros_like(pack.head["kernel"]), "bias": np.tile(np.float32([0, 1]), 20)}
    pack = with_arrays(pack, head=head)
    best = TaskBank(backbone).add(pack).top_k(IMAGES[:1], task="birds", k=30)[0]
    assert [name for name, _ in best] == [f"class {index}" for index in (*range(1, 40, 2), *range(0, 20, 2))]


@pytest.mark.parametrize("hold", ["packed", "compressed"])
def test_masks_are_compared_as_those_of_the_packs(packs, hold):
    backbone, packs = packs
    bank = TaskBank(backbone, hold=hold)
    for pack in packs:
        bank.add(pack)
    for a in packs:
        for b in packs:
            assert bank.compare(a.task, b.task) == compare_masks(a, b)
    with pytest.raises(ValueError, match="Unknown task"):
        bank.compare(next(iter(VARIANTS)), "fish")
