"""What methods promise of tasks learned one after another, with the real trainings of three parts of the digits."""

import itertools

import pytest

from piggyback_tf.methods import METHODS
from piggyback_tf.packs import TaskPack
from piggyback_tf.sequences import run_sequence
from tests.methods.real_training import digits_task
from tests.methods.toy import toy_backbone, toy_settings

PARTS = {"low": (0, 3), "middle": (4, 6), "high": (7, 9)}
KEEPING = [name for name in METHODS if METHODS[name].keeps_old_tasks]


def _tasks(names=tuple(PARTS)):
    return {name: digits_task(*PARTS[name], images=60) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("method", KEEPING)
def test_old_tasks_answer_bit_for_bit_the_same(method, tmp_path):
    metrics = run_sequence(tmp_path, toy_backbone(norm=method != "ssf"), _tasks(), toy_settings(method, epochs=4))
    answers = [step["answers"] for step in metrics["steps"]]
    assert [len(step) for step in answers] == [1, 2, 3]
    for before, after in itertools.pairwise(answers):
        assert before.items() <= after.items()
    assert len(set(answers[-1].values())) == 3
    assert metrics["measures"]["forgetting"] == metrics["measures"]["backward_transfer"] == 0


@pytest.fixture(scope="module", name="digests")
def _digests(tmp_path_factory):
    """Returns a function that learns the tasks in an order and returns the digest of each task's pack."""

    def learn(order):
        folder = tmp_path_factory.mktemp("order")
        settings = toy_settings("piggyback", epochs=2, mask_lr=3e-3, mask_trust=0.0)
        run_sequence(folder, toy_backbone(), _tasks(order), settings)
        paths = {task: folder / f"{place}_{task}" / f"{task}.task.safetensors" for place, task in enumerate(order, 1)}
        packs = {task: TaskPack.load(path) for task, path in paths.items()}
        # Masks that never left their start would be the same whatever the order.
        assert all(pack.zeros_total > 0 for pack in packs.values())
        return {task: pack.content_digest() for task, pack in packs.items()}

    return learn


@pytest.fixture(scope="module", name="expected")
def _expected(digests):
    return digests(tuple(PARTS))


ORDERS = list(itertools.permutations(PARTS))[:0:-1]  # The reverse first, and not that of `expected`.


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_masks_are_the_same_in_every_order_of_tasks(order, digests, expected):
    assert digests(order) == expected
