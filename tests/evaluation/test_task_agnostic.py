"""Telling tasks apart, against numbers worked out by hand."""

import numpy as np
import pytest

from piggyback_tf.evaluation.task_agnostic import (
    entropy_change,
    normalised_entropy,
    task_agnostic_lines,
    task_agnostic_measures,
)

IMAGES = {"a": 4, "b": 2}
# The first three images of a are taken for a, the last for b; of b's, the first is as likely a.
COSTS = np.array([[0.1, 0.2], [0.0, 0.9], [0.3, 0.4], [0.5, 0.1], [0.6, 0.6], [0.9, 0.2]])
HITS = np.array([True, False, True, True, True, True])


def test_entropy_is_a_part_of_that_of_knowing_nothing():
    for classes in (2, 10):
        assert normalised_entropy(np.full((1, classes), 3.0)) == pytest.approx(1.0)
    sure = np.zeros((1, 5), np.float32)
    sure[0, 2] = 1e4
    assert normalised_entropy(sure) == 0.0
    probabilities = np.array([[0.7, 0.2, 0.1]])
    by_hand = -(probabilities * np.log(probabilities)).sum() / np.log(3)
    assert normalised_entropy(np.log(probabilities) + 50) == pytest.approx(by_hand)


def test_entropy_changes_as_its_differences_say():
    rng = np.random.default_rng(0)
    logits, tangents = rng.normal(size=(2, 6, 4))
    step = 1e-6
    expected = (normalised_entropy(logits + step * tangents) - normalised_entropy(logits - step * tangents)) / (
        2 * step
    )
    np.testing.assert_allclose(entropy_change(logits, tangents), expected, rtol=1e-6, atol=1e-9)


def test_measures():
    found = task_agnostic_measures(IMAGES, COSTS, HITS)
    assert found["by_task"]["a"] == {"task_id_accuracy": 75.0, "class_incremental_error": 50.0}
    # Of equal costs the first task's is taken.
    assert found["by_task"]["b"] == {"task_id_accuracy": 50.0, "class_incremental_error": 50.0}
    # Means of tasks, not of images.
    assert found["task_id_accuracy"] == 62.5
    assert found["class_incremental_error"] == 50.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"costs \[6, 2\] and hits \[6\]. Received: \[5, 2\], \[6\]"):
        task_agnostic_measures(IMAGES, COSTS[1:], HITS)
    with pytest.raises(ValueError, match="cannot be inferred where the network answers NaN"):
        task_agnostic_measures(IMAGES, np.where(COSTS == 0.9, np.nan, COSTS), HITS)


def test_a_table_has_the_ways_that_were_measured():
    assert task_agnostic_lines({}) == []
    found = task_agnostic_measures(IMAGES, COSTS, HITS)
    lines = task_agnostic_lines({"task_agnostic": {"entropy": found, "gradient": found}})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert rows[2:] == [["entropy", "62.50", "50.00"], ["gradient", "62.50", "50.00"]]
