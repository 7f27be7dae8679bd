"""Memory for tensors: used again when nothing refers to it, never before, and not hoarded."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from piggyback_tf.packs.spare_memory import SpareMemory

ROOT = Path(__file__).parents[2]
SIZE = 3 << 20


def _address(array):
    return array.ctypes.data


def test_one_piece_is_kept_for_the_next():
    memory = SpareMemory()
    first, second = memory.take(SIZE), memory.take(SIZE)
    assert (first.dtype, first.shape) == ("uint8", (SIZE,))
    first[:], second[:] = 1, 2
    assert (first == 1).all()
    places = [_address(first), _address(second)]
    del first, second
    # The last one that came free.
    third, fourth = memory.take(SIZE), memory.take(SIZE)
    assert _address(third) == places[1]
    assert _address(fourth) != places[1]


@pytest.mark.parametrize("keep", [lambda a: a[64:128].view("int64")[::2], lambda a: np.from_dlpack(a[64:128])])
def test_a_piece_of_which_a_part_is_in_use_is_not_given_away(keep):
    memory = SpareMemory()
    array = memory.take(SIZE)
    place, part = _address(array), keep(array)
    part[:] = 7
    del array
    other = memory.take(SIZE)
    other[:] = 9
    assert _address(other) != place
    assert (part == 7).all()
    del part
    assert _address(memory.take(SIZE)) == place


@pytest.mark.parametrize("size", [SIZE - 5000, SIZE + 1, 10 * SIZE, 1000])
def test_pieces_of_other_sizes(size):
    memory = SpareMemory()
    memory.take(SIZE)[:] = 1
    array = memory.take(size)
    array[:] = 2
    assert array.shape == (size,)
    assert array.sum() == 2 * size


def test_threads_do_not_get_the_same_piece():
    memory, barrier = SpareMemory(), threading.Barrier(8)

    def call(number):
        barrier.wait()
        for size in np.random.default_rng(number).integers(1 << 20, 1 << 21, 50):
            array = memory.take(int(size))
            array[::4096] = number
            threading.Event().wait(1e-4)
            assert (array[::4096] == number).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))


# Eight threads put pieces into a cache for three, beside small objects of their own that stay.
_HOARD = """
import gc, os, threading
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from piggyback_tf.packs.kernel_cache import KernelCache
from piggyback_tf.packs.spare_memory import SpareMemory

size, memory, stay, barrier = 9_500_000, SpareMemory(), [], threading.Barrier(8)
cache = KernelCache(3 * size)

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

def call(number):
    barrier.wait()
    for step in range(15):
        array = memory.take(size)
        array[:] = 1
        stay.append(np.ones(200_000, "uint8"))
        cache.put((number, step), array)

before = resident()
with ThreadPoolExecutor(8) as pool:
    list(pool.map(call, range(8)))
print((resident() - before - sum(array.nbytes for array in stay)) / size)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_threads_dropped_is_given_back():
    run = subprocess.run([sys.executable, "-c", _HOARD], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    # Three in the cache and a spare one.
    assert 2.9 < float(run.stdout) < 4.6
