"""Many clients at a time, with batching: no answer for another image, task or client."""

import shutil
import threading

import numpy as np
import pytest

from tests.export.serving.conftest import REAL, SERVERS, client_of

# Black, white, red and blue: noise would look all the same to the network.
COLOURS = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]], np.uint8)
IMAGES = np.tile(COLOURS[:, None, None], (1, 8, 8, 1))
THREADS, CALLS = 8, 50


def test_tensorflow_servings_own_server_is_asked_too():
    """Says in one line what is not tested where it is missing."""
    if shutil.which(REAL) is None:
        pytest.skip(f"{REAL} is not installed: no test of this folder asks it")
    assert sum(REAL in name for name in SERVERS) == 2


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_no_answer_is_wrong(server, protocol, small):
    names = small.bank.names
    answers = {name: small.bank.predict(IMAGES, task=name) for name in names}
    client, wrong = client_of(server, protocol), []

    def ask(thread):
        rng = np.random.default_rng(thread)
        for _ in range(CALLS):
            places = rng.integers(0, len(IMAGES), rng.integers(1, 4))
            tasks = [names[index] for index in rng.integers(0, len(names), len(places))]
            found = client.classify(IMAGES[places], tasks)["probabilities"]
            for row, place, task in zip(found, places, tasks, strict=True):
                expected = answers[task][place]
                if np.abs(row[: len(expected)] - expected).max() > 1e-5:
                    wrong.append((task, place))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    # The answer of another task, or for another image, would have been seen.
    rows = np.stack([np.pad(row, (0, 7 - len(row))) for name in names for row in answers[name]])
    distances = np.abs(rows[:, None] - rows[None]).max(axis=2)
    assert distances[~np.eye(len(rows), dtype=bool)].min() > 2e-5
