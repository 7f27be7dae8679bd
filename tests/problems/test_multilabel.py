"""Any number of classes for an image: the loss, the measure and what it refuses."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import average_precision_score

from piggyback_tf.problems import PROBLEMS, Problem
from piggyback_tf.problems.class_means import average_precision, measured_by_class
from piggyback_tf.problems.multilabel import MeanPrecisionError, MultiLabel

CLASSES = ("cat", "dog", "tree", "nothing")


def made(images=40, seed=0):
    """Returns labels of all but the last class, and logits that are often right and often equal."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((images, 4)) < [0.5, 0.3, 0.1, 0]).astype(np.int32)
    labels[:3, :3] = np.eye(3)
    logits = np.round(rng.normal(size=labels.shape) + 1.5 * labels, 1).astype(np.float32)
    return labels, logits


def test_average_precision_is_that_of_scikit_learn():
    labels, logits = made()
    times = np.random.default_rng(1).integers(0, 4, (5, len(labels)))
    times[0] = 1
    found = average_precision(logits, labels, times)
    for drawn, row in zip(times, found, strict=True):
        often = np.repeat(np.arange(len(labels)), drawn)
        expected = [average_precision_score(labels[often, c], logits[often, c]) for c in range(3)]
        np.testing.assert_allclose(row[:3], expected, atol=1e-12)
    assert np.isnan(found[:, 3]).all()


def test_the_error_is_that_of_the_classes_that_occur():
    labels, logits = made()
    problem = MultiLabel(CLASSES, (8, 8))
    counts = np.concatenate([problem.count(logits[:30], labels[:30]), problem.count(logits[30:], labels[30:])])
    found = problem.measured(counts)
    each = [100 * average_precision_score(labels[:, c], logits[:, c]) for c in range(3)]
    assert list(found["average_precision"].values())[:3] == pytest.approx(each)
    assert found["average_precision"]["nothing"] is None
    assert found["mean_precision_error"] == pytest.approx(100 - np.mean(each))
    assert found["mean_precision_error_low"] < found["mean_precision_error"] < found["mean_precision_error_high"]
    assert next(iter(found)) == "mean_precision_error" and found["images"] == 40
    # The order of scores counts, and so probabilities give what logits do.
    probabilities = problem.answer(tf.constant(logits))["probabilities"].numpy()
    assert problem.measured(problem.count(probabilities, labels)) == found


def test_that_of_an_epoch_is_the_same_for_scores_that_differ():
    labels, logits = made()
    metric = MeanPrecisionError(4)
    for part in (slice(0, 17), slice(17, 40)):
        metric.update_state(labels[part], logits[part])
    problem = MultiLabel(CLASSES, (8, 8))
    expected = problem.measured(problem.count(logits, labels))["mean_precision_error"]
    assert 100 * float(metric.result()) == pytest.approx(expected, abs=1e-4)
    # A head that has hardly begun to learn gives logits that hardly differ.
    young = MeanPrecisionError(4)
    young.update_state(labels, 1e-3 * logits)
    assert 100 * float(young.result()) == pytest.approx(expected, abs=1e-4)
    # What is filled up for several devices has no weight, and all else the same.
    filled = MeanPrecisionError(4)
    weights = np.array([0.1] * 40 + [0] * 5, np.float32)
    filled.update_state(np.concatenate([labels, labels[:5]]), np.concatenate([logits, -logits[:5]]), weights)
    assert 100 * float(filled.result()) == pytest.approx(expected, abs=1e-3)
    metric.reset_state()
    metric.update_state(0 * labels, logits)
    assert float(metric.result()) == 1.0


def test_the_loss_is_the_mean_over_classes_and_chance_its_lowest_without_images():
    labels, logits = made()
    problem = MultiLabel(CLASSES, (8, 8))
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    expected = -(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean(axis=1)
    assert problem.loss("none")(labels, logits).numpy() == pytest.approx(expected, rel=1e-5)
    (_, cross_entropy) = problem.metrics()
    cross_entropy.update_state(labels, logits)
    assert float(cross_entropy.result()) == pytest.approx(expected.mean(), rel=1e-5)
    shares = labels.mean(axis=0)
    constant = np.log(np.maximum(shares, 1e-9)) - np.log1p(-shares)
    guessed = problem.loss("sum_over_batch_size")(labels, np.tile(constant, (40, 1)).astype(np.float32))
    assert problem.chance(labels) == pytest.approx(float(guessed), abs=1e-5)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda labels, logits: (labels, logits[:, :3]), r"must be \(40, 4\). Received: \[\(40, 3\), \(40, 4\)\]"),
        (lambda labels, logits: (labels[:, 0], logits), r"Received: \[\(40, 4\), \(40,\)\]"),
        (lambda labels, logits: (labels + 1, logits), "targets of 0 and 1"),
        (lambda labels, logits: (labels, np.where(logits > 2, np.nan, logits)), "without NaN"),
    ],
)
def test_what_cannot_be_judged_is_refused(spoil, sentence):
    labels, logits = spoil(*made())
    with pytest.raises(ValueError, match=sentence):
        MultiLabel(CLASSES, (8, 8)).count(logits, labels)


def test_nothing_is_measured_of_no_images_and_all_is_wrong_where_no_class_occurs():
    with pytest.raises(ValueError, match="no images"):
        MultiLabel(CLASSES, (8, 8)).measured(np.zeros((0, 2, 4), np.float32))
    errors, by_class = measured_by_class("an_error", lambda times: np.full([len(times), 2], np.nan), 3, "ab")
    assert errors == {"an_error": 100.0, "an_error_low": 100.0, "an_error_high": 100.0, "images": 3}
    assert by_class == {"a": None, "b": None}


def test_a_problem_needs_a_target():
    with pytest.raises(ValueError, match="Problem 'depth' needs a target of the same name"):
        PROBLEMS.register("depth")(Problem)
    assert "depth" not in PROBLEMS
