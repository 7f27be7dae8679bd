"""LogME against its definition, and what it prefers."""

import numpy as np
import pytest

from piggyback_tf.evaluation.transferability import log_me


def _iterated(features, labels):
    """The maximum evidence as the paper finds it, by iterating alpha and beta, with matrices of the features' size."""
    count, size = features.shape
    scores = []
    for label in np.unique(labels):
        target = (labels == label).astype(float)
        alpha = beta = 1.0
        for _ in range(2000):
            precision = alpha * np.eye(size) + beta * features.T @ features
            mean = beta * np.linalg.solve(precision, features.T @ target)
            misfit, length = np.sum((target - features @ mean) ** 2), mean @ mean
            effective = size - alpha * np.trace(np.linalg.inv(precision))
            alpha, beta = effective / length, (count - effective) / misfit
        precision = alpha * np.eye(size) + beta * features.T @ features
        mean = beta * np.linalg.solve(precision, features.T @ target)
        misfit, length = np.sum((target - features @ mean) ** 2), mean @ mean
        scores.append(
            0.5 * (count * np.log(beta) + size * np.log(alpha) - count * np.log(2 * np.pi))
            - 0.5 * (beta * misfit + alpha * length + np.linalg.slogdet(precision)[1])
        )
    return np.mean(scores) / count


@pytest.mark.parametrize("size", [4, 30])
def test_is_the_papers_maximum(size):
    random = np.random.default_rng(0)
    labels = np.arange(40) % 3
    features = random.normal(size=(40, size))
    features[:, 0] += labels
    features[:, 1] -= labels == 1
    assert log_me(features, labels) == pytest.approx(_iterated(features, labels), abs=2e-3)


def test_prefers_features_that_tell_classes_apart_to_those_that_fit_by_chance():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 80)
    noise = random.normal(size=(80, 200))
    scores = []
    for separation in (0.0, 0.5, 2.0):
        features = noise.copy()
        features[:, :4] += separation * np.eye(4)[labels]
        scores.append(log_me(features, labels))
    assert scores == sorted(scores)
    assert scores[2] > scores[0] + 0.05
    # All 200 fit 80 labels exactly; the four that mean something are worth more.
    assert log_me(features[:, :4], labels) > log_me(noise, labels)


def test_does_not_change_with_scale_or_order_and_takes_dead_features():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(30, 8)), np.arange(30) % 2
    features[:, 0] += labels
    score = log_me(features, labels)
    assert log_me(1e3 * features[::-1, ::-1], labels[::-1]) == pytest.approx(score, abs=1e-3)
    assert np.isfinite(log_me(np.zeros((30, 8)), labels))
    assert log_me(np.zeros((30, 8)), labels) < score
    with pytest.raises(ValueError, match="NaN"):
        log_me(np.full((30, 8), np.nan), labels)


def test_of_several_classes_each_counts_by_itself():
    random = np.random.default_rng(0)
    features, labels = random.normal(size=(30, 8)), np.arange(30) % 3
    each = (labels[:, None] == np.arange(3)).astype(np.int32)
    assert log_me(features, each) == log_me(features, labels)
    both = np.stack([each[:, 0], each[:, 0] + each[:, 1]], axis=1)
    alone = [log_me(features, column[:, None]) for column in both.T]
    assert log_me(features, both) == pytest.approx(np.mean(alone))
