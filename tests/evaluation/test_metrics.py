"""Errors and their intervals."""

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from piggyback_tf.evaluation import evaluate, top_k_error, top_k_hits, wilson_interval


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_k_error_is_that_of_scikit_learn(k):
    rng = np.random.default_rng(k)
    labels, scores = rng.integers(0, 12, 200), rng.random((200, 12))
    expected = 100 * (1 - top_k_accuracy_score(labels, scores, k=k, labels=range(12)))
    assert top_k_error(labels, scores, k) == pytest.approx(expected)


def test_equal_scores_are_no_hits_for_free():
    scores = np.zeros((4, 4))
    assert top_k_hits(np.arange(4), scores, 1).tolist() == [True, False, False, False]
    assert top_k_hits(np.arange(4), scores, 2).tolist() == [True, True, False, False]
    # As argmax has it.
    scores = np.array([[1.0, 3.0, 3.0]])
    assert top_k_error([1], scores) == 0
    assert top_k_error([2], scores) == 100


def test_the_numbers_are_percentages():
    scores = np.eye(4)[[0, 1, 2, 0]]
    assert top_k_error([0, 1, 2, 3], scores) == 25.0
    assert top_k_error([0, 1, 2, 3], scores, k=4) == 0.0


@pytest.mark.parametrize(
    ("labels", "scores", "k", "message"),
    [
        ([0], [[np.nan, 1.0]], 1, "must not be NaN"),
        ([2], [[0.0, 1.0]], 1, r"lie in \[0, 2\)"),
        ([-1], [[0.0, 1.0]], 1, r"lie in \[0, 2\)"),
        ([0, 1], [[0.0, 1.0]], 1, r"scores \[N, C\]"),
        ([0], [0.0, 1.0], 1, r"scores \[N, C\]"),
        ([0], [[0.0, 1.0]], 0, "k must be at least 1"),
        (np.zeros(0, int), np.zeros((0, 3)), 1, "no images"),
    ],
)
def test_wrong_arguments(labels, scores, k, message):
    with pytest.raises(ValueError, match=message):
        top_k_error(labels, scores, k)


@pytest.mark.parametrize(
    ("misses", "images", "low", "high"),
    # From Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    [(81, 263, 25.53, 36.62), (15, 148, 6.24, 16.05), (0, 20, 0.00, 16.11), (1, 29, 0.61, 17.18)],
)
def test_wilson_interval_is_the_published_one(misses, images, low, high):
    assert wilson_interval(misses, images) == pytest.approx((low, high), abs=0.005)


def test_wilson_interval_at_the_ends():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 100.0
    for misses, images in ((0, 1), (1, 1), (3, 7), (999, 100_000)):
        low, high = wilson_interval(misses, images)
        assert 0 <= low <= 100 * misses / images <= high <= 100
        other = wilson_interval(images - misses, images)
        assert (100 - other[1], 100 - other[0]) == pytest.approx((low, high))
    for misses, images in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="An interval needs"):
            wilson_interval(misses, images)


def test_wilson_interval_covers():
    # Over many samples of a known error rate about 95 % of the intervals contain it.
    rng = np.random.default_rng(0)
    covered = []
    for misses in rng.binomial(200, 0.1, 2000):
        low, high = wilson_interval(int(misses), 200)
        covered.append(low <= 10 <= high)
    assert 0.93 < np.mean(covered) < 0.97


def test_evaluate_goes_over_all_batches():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 8, 50), rng.random((50, 8))
    batches = [(np.arange(i, min(i + 16, 50)), labels[i : i + 16]) for i in range(0, 50, 16)]
    result = evaluate(lambda indices: scores[indices], iter(batches))
    assert result["images"] == 50
    for k in (1, 5):
        assert result[f"top{k}_error"] == pytest.approx(top_k_error(labels, scores, k))
        low, high = wilson_interval(round(result[f"top{k}_error"] / 2), 50)
        assert (result[f"top{k}_error_low"], result[f"top{k}_error_high"]) == (low, high)


def test_evaluate_has_no_top_5_error_of_five_classes():
    result = evaluate(lambda images: np.eye(5)[images], [(np.arange(5), np.arange(5))])
    assert set(result) == {"top1_error", "top1_error_low", "top1_error_high", "images"}
    assert result["top1_error"] == 0


def test_evaluate_without_images():
    with pytest.raises(ValueError, match="no images"):
        evaluate(lambda images: images, [])
