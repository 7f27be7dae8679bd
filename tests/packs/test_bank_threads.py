"""Threads on one bank: no answer depends on what the others do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from piggyback_tf.packs import TaskBank
from tests.packs.helpers import pack_of, packs_of_all_kinds, renamed, small_backbone, trained_model

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
THREADS = 8
# Two or three of the six tasks fit.
CACHE = 10_000


@pytest.fixture(scope="module", name="backbone")
def _backbone():
    return small_backbone()


def _in_threads(call):
    """Calls `call(number)` in eight threads, which start together, and passes on what they raise."""
    barrier = threading.Barrier(THREADS)

    def started(number):
        barrier.wait()
        call(number)

    with ThreadPoolExecutor(THREADS) as pool:
        for future in [pool.submit(started, number) for number in range(THREADS)]:
            future.result()


@pytest.mark.parametrize("hold", ["packed", "compressed"])
def test_threads_on_different_tasks_do_not_meet(backbone, hold):
    bank, alone = TaskBank(backbone, cache_bytes=CACHE, hold=hold), TaskBank(backbone)
    names = []
    for pack in packs_of_all_kinds(backbone):
        bank.add(pack)
        alone.add(pack)
        names.append(pack.task)
    expected = {name: alone.predict(IMAGES, task=name) for name in names}
    mixed = [names[index] for index in (0, 3, 0, 5, 1)]
    expected_mixed = alone.predict(IMAGES, task=mixed)

    def call(number):
        for step in range(15):
            name = names[(number + step) % len(names)]
            np.testing.assert_array_equal(bank.predict(IMAGES, task=name), expected[name])
            for found, row in zip(bank.predict(IMAGES, task=mixed), expected_mixed, strict=True):
                np.testing.assert_array_equal(found, row)
            assert bank.nbytes["cache"] <= CACHE

    _in_threads(call)
    assert bank._networks.traces == 1


def test_tasks_come_and_go_while_others_predict(backbone):
    one, two = (pack_of(trained_model(backbone, seed=seed), backbone, task="changing") for seed in (1, 2))
    steady = pack_of(trained_model(backbone), backbone, task="steady")
    bank = TaskBank(backbone, cache_bytes=CACHE).add(steady)
    expected = bank.predict(IMAGES, task="steady")
    either = [TaskBank(backbone).add(pack).predict(IMAGES, task="changing") for pack in (one, two)]
    seen, done = [threading.Event(), threading.Event()], threading.Event()

    def change():
        for index in range(60):
            bank.add((one, two)[index % 2])
            bank.add(renamed(steady, f"other{index}"))
            seen[index % 2].clear()
            assert seen[index % 2].wait(60), "no thread had an answer of the task that was added"
            bank.remove("changing")

    def predict():
        while not done.is_set():
            np.testing.assert_array_equal(bank.predict(IMAGES, task="steady"), expected)
            try:
                found = bank.predict(IMAGES, task="changing")
            except ValueError as error:
                assert "Unknown task 'changing'" in str(error)
                continue
            matches = [index for index in range(2) if np.array_equal(found, either[index])]
            assert matches, "the answer is neither that of one content nor that of the other"
            seen[matches[0]].set()

    def call(number):
        try:
            predict() if number else change()
        finally:
            # Whether all went well or not, the others need not go on.
            done.set()

    _in_threads(call)
    assert bank.names == ["steady", *(f"other{index}" for index in range(60))]
    assert bank.nbytes["cache"] <= CACHE


def test_a_task_of_an_old_name_is_a_new_task(backbone):
    first, second = (pack_of(trained_model(backbone, seed=seed), backbone) for seed in (1, 2))
    bank = TaskBank(backbone).add(first)
    old = bank.predict(IMAGES, task="birds")
    bank.remove("birds")
    assert bank.nbytes["cache"] == 0
    new = bank.add(second).predict(IMAGES, task="birds")
    np.testing.assert_array_equal(new, TaskBank(backbone).add(second).predict(IMAGES, task="birds"))
    assert np.abs(new - old).max() > 1e-3


def test_a_task_that_is_removed_during_a_call_leaves_nothing(backbone, monkeypatch):
    pack = pack_of(trained_model(backbone), backbone)
    bank, expected = TaskBank(backbone).add(pack), TaskBank(backbone).add(pack).predict(IMAGES, task="birds")
    materialise = bank._base.materialise

    def and_remove(task):
        tensors = materialise(task)
        bank.remove("birds")
        return tensors

    monkeypatch.setattr(bank._base, "materialise", and_remove)
    np.testing.assert_array_equal(bank.predict(IMAGES, task="birds"), expected)
    assert (bank.names, bank.nbytes["cache"]) == ([], 0)
