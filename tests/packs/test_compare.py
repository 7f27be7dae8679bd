"""What two masks have in common."""

import numpy as np
import pytest

from piggyback_tf.packs import MaskBits, PackError
from piggyback_tf.packs.bits import pack_bits
from piggyback_tf.packs.compare import MaskOverlap, compare_masks
from tests.packs.helpers import make_pack, with_arrays

KINDS = ("binary", "ternary", "none")


@pytest.mark.parametrize("kind_b", KINDS)
@pytest.mark.parametrize("kind_a", KINDS)
def test_counts_are_those_of_the_unpacked_masks(kind_a, kind_b):
    a, b = make_pack(kind_a, seed=1), make_pack(kind_b, seed=2)
    found = compare_masks(a, b)
    assert list(found) == list(a.masks or b.masks)
    for path, overlap in found.items():
        shape = (a.masks.get(path) or b.masks[path]).shape
        one, two = (pack.mask(path) if path in pack.masks else np.ones(shape, np.int8) for pack in (a, b))
        assert overlap == MaskOverlap(
            both=((one != 0) & (two != 0)).sum(),
            only_a=((one != 0) & (two == 0)).sum(),
            only_b=((one == 0) & (two != 0)).sum(),
            neither=((one == 0) & (two == 0)).sum(),
            opposite=(one * two < 0).sum(),
        )
        assert overlap.weights == one.size
        assert overlap.agreement == pytest.approx((one == two).mean())
        dropped = (one == 0) | (two == 0)
        assert overlap.zeros_jaccard == pytest.approx(overlap.neither / dropped.sum())
    total = MaskOverlap.total(found.values())
    assert total.weights == sum(overlap.weights for overlap in found.values())
    assert total.opposite == sum(overlap.opposite for overlap in found.values())


def test_a_layer_that_only_one_task_masks():
    one, two = make_pack(seed=1), make_pack(seed=2)
    path = "conv/kernel"
    two = with_arrays(two, masks={key: bits for key, bits in two.masks.items() if key != path})
    kept = int((one.mask(path) != 0).sum())
    assert compare_masks(one, two)[path] == MaskOverlap(kept, 0, 135 - kept, 0)
    assert compare_masks(two, one)[path] == MaskOverlap(kept, 135 - kept, 0, 0)
    assert list(compare_masks(two, one)) == ["block/dense/kernel", path]


def test_nothing_dropped_is_full_agreement():
    ones = {"fc/kernel": MaskBits((3, 3), pack_bits(np.ones((3, 3), np.int8), "binary"))}
    overlap = compare_masks(make_pack(masks=ones), make_pack(masks=ones))["fc/kernel"]
    assert (overlap.agreement, overlap.zeros_jaccard) == (1, 1)
    none = MaskOverlap.total(compare_masks(make_pack("none"), make_pack("none")).values())
    assert (none.weights, none.agreement, none.zeros_jaccard) == (0, 1, 1)


def test_masks_that_cannot_be_compared():
    with pytest.raises(PackError, match="masks can be compared on one base only"):
        compare_masks(make_pack(), make_pack(base_hash="cd" * 32))
    other = make_pack()
    other.masks["conv/kernel"] = MaskBits((135,), other.masks["conv/kernel"].packed)
    with pytest.raises(PackError, match=r"'conv/kernel' have different shapes: \[3, 3, 3, 5\] and \[135\]"):
        compare_masks(make_pack(), other)
