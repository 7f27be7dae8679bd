"""From bits to masked kernels, bit by bit, and the cache that keeps them."""

import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import keras
import ml_dtypes
import numpy as np
import pytest

from piggyback_tf.packs import materialise
from piggyback_tf.packs.bits import MASK_VALUES, MaskBits, pack_bits
from piggyback_tf.packs.held_task import HeldTask
from piggyback_tf.packs.kernel_cache import KernelCache
from piggyback_tf.packs.materialise import BaseTensors, apply_mask
from tests.packs.helpers import make_pack

DTYPES = ("float32", "float16", "float64", ml_dtypes.bfloat16)


def _masked(weights, mask):
    """Returns the weights times the mask with +0.0 where that is 0."""
    return np.where(mask == 0, weights.dtype.type(0), np.where(mask < 0, -weights, weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", MASK_VALUES)
@pytest.mark.parametrize("count", [1, 7, 8, 9, 31, 32, 33, 500])
def test_masked_weights_bit_by_bit(monkeypatch, count, kind, dtype):
    monkeypatch.setattr(materialise, "_CHUNK", 32)
    rng = np.random.default_rng(count)
    weights = rng.standard_normal(count).astype(dtype)
    weights[rng.random(count) < 0.1] = -0.0
    mask = rng.choice(MASK_VALUES[kind], count)
    out = np.full(-(-count // 8) * 8 + 8, 99, f"int{8 * weights.itemsize}")
    apply_mask(weights, pack_bits(mask, kind), out)
    assert out[:count].tobytes() == _masked(weights, mask).tobytes()
    assert (out[count:-8] == 0).all(), "behind the last weight"
    assert (out[-8:] == 99).all(), "nothing is written behind the last byte's weights"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kind", ["binary", "ternary", "none"])
def test_a_task_on_variables_of_any_dtype(kind, dtype):
    rng = np.random.default_rng(0)
    pack = make_pack(kind)
    shapes = {"conv/kernel": (3, 3, 3, 5), "conv/bias": (5,), "block/dense/kernel": (7, 4)}
    shapes |= {path: value.shape for path, value in pack.norm.items()}
    variables = {path: keras.Variable(rng.standard_normal(shape), dtype=dtype) for path, shape in shapes.items()}
    tensors = BaseTensors(variables).materialise(HeldTask.of(pack, "packed"))
    for (path, variable), tensor in zip(variables.items(), tensors.weights, strict=True):
        expected = np.asarray(variable.value)
        if path in pack.masks:
            expected = _masked(expected, pack.mask(path))
        elif path in pack.norm:
            expected = pack.norm[path].astype(expected.dtype)
        assert tensor.dtype == dtype
        assert tensor.shape == variable.shape
        assert np.asarray(tensor).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(tensors.head["kernel"], pack.head["kernel"])
    np.testing.assert_array_equal(tensors.head["bias"], pack.head["bias"])


def test_tensors_are_aligned_and_not_copied():
    shapes = {"a/kernel": (3, 5), "b/kernel": (7, 300)}
    variables = {path: keras.Variable(np.ones(shape, "float32")) for path, shape in shapes.items()}
    masks = {path: MaskBits(tuple(v.shape), pack_bits(np.ones(v.shape), "binary")) for path, v in variables.items()}
    tensors = BaseTensors(variables).materialise(HeldTask.of(make_pack(masks=masks, norm={}), "packed"))
    addresses = [np.asarray(tensor).ctypes.data for tensor in tensors.weights]
    assert addresses[0] % 64 == 0
    # One behind the other in one piece of memory: 60 bytes, and four to the next multiple of 64.
    assert addresses[1] == addresses[0] + 64


@dataclasses.dataclass
class _Value:
    nbytes: int


def test_the_cache_keeps_what_was_used_last():
    cache = KernelCache(10)
    for key in "abc":
        cache.put(key, _Value(3))
    assert cache.get("a").nbytes == 3
    cache.put("d", _Value(4))
    assert [key for key in "abcd" if cache.get(key)] == ["a", "c", "d"]
    assert cache.nbytes == 10
    cache.put("e", _Value(11))
    assert (cache.get("e"), cache.nbytes) == (None, 10), "what is too large costs nobody their place"
    cache.put("a", _Value(1))
    cache.put("a", _Value(2))
    assert (cache.get("a").nbytes, cache.nbytes) == (2, 9)
    cache.discard("d")
    cache.discard("d")
    assert (cache.get("d"), cache.nbytes) == (None, 5)
    cache.put("f", _Value(10))
    assert [key for key in "abcdef" if cache.get(key)] == ["f"]
    empty = KernelCache(0)
    empty.put("a", _Value(1))
    assert (empty.get("a"), empty.nbytes) == (None, 0)


class _Interrupted(_Value):
    """Lets other threads run whenever its size is read, so that what is not guarded is found."""

    @property
    def nbytes(self):
        time.sleep(0)
        return self._nbytes

    @nbytes.setter
    def nbytes(self, value):
        self._nbytes = value


def test_the_limit_holds_among_threads():
    cache, barrier, most = KernelCache(100), threading.Barrier(8), []

    def call(seed):
        rng = np.random.default_rng(seed)
        barrier.wait()
        for key, size, what in rng.integers(1, 40, (100, 3)):
            cache.discard(key) if what < 5 else cache.put(key, _Interrupted(int(size)))
            most.append(cache.nbytes)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert 50 < max(most) <= 100
    assert cache.nbytes == sum(cache.get(key).nbytes for key in range(1, 40) if cache.get(key))
