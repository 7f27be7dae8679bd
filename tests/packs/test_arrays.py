"""What a task adds to its base, as arrays."""

import numpy as np
import pytest

from piggyback_tf.packs import PackError, TaskPack
from tests.packs.helpers import make_pack


def test_half_precision_is_asked_for():
    pack = make_pack()
    half = pack.astype("float16")
    assert TaskPack.from_bytes(half.to_bytes()).content_digest() == half.content_digest()
    assert len(half.to_bytes()) < len(pack.to_bytes())
    np.testing.assert_array_equal(half.head["kernel"], pack.head["kernel"].astype("float16").astype("float32"))
    assert half.head["kernel"].dtype == np.float32
    assert half.astype("float32").dtype == "float32"
    pack.norm["bn/gamma"][0] = 1e6
    with pytest.raises(PackError, match="'bn/gamma' holds 1000000.0, which is too large for float16"):
        pack.astype("float16")
    with pytest.raises(PackError, match="must be one of float32, float16"):
        pack.astype("bfloat16")
