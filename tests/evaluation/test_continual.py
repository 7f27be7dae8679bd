"""Measures of sequences, against numbers worked out by hand."""

import pytest

from piggyback_tf.evaluation.continual import ErrorMatrix, read_matrix

MATRIX = ErrorMatrix(
    ("a", "b", "c"),
    ({"a": 10.0}, {"a": 14.0, "b": 20.0}, {"a": 22.0, "b": 19.0, "c": 30.0}),
)


def test_measures():
    assert MATRIX.average_error() == pytest.approx((22 + 19 + 30) / 3)
    assert MATRIX.forgetting() == pytest.approx(((22 - 10) + (19 - 20)) / 2)
    assert MATRIX.backward_transfer() == pytest.approx(((10 - 22) + (20 - 19)) / 2)
    assert MATRIX.forward_transfer({"b": 24.0, "c": 27.0}) == pytest.approx(((24 - 20) + (27 - 30)) / 2)


def test_forgetting_is_measured_from_the_best_step():
    matrix = ErrorMatrix(("a", "b", "c"), ({"a": 10.0}, {"a": 4.0, "b": 5.0}, {"a": 6.0, "b": 5.0, "c": 1.0}))
    assert matrix.forgetting() == pytest.approx((2 + 0) / 2)
    assert matrix.backward_transfer() == pytest.approx((4 + 0) / 2)


def test_what_was_not_measured_has_no_value():
    at_once = ErrorMatrix(("a", "b"), ({}, {"a": 1.0, "b": 3.0}))
    assert at_once.average_error() == 2.0
    assert at_once.forgetting() is at_once.backward_transfer() is None
    assert at_once.forward_transfer({"a": 1.0, "b": 1.0}) == -2.0
    assert MATRIX.forward_transfer({"b": 1.0}) is None
    assert ErrorMatrix(("a",), ({"a": 1.0},)).forgetting() is None


def test_a_matrix_needs_a_step_for_each_task_and_all_errors_at_the_end():
    with pytest.raises(ValueError, match="a step for each task"):
        ErrorMatrix(("a", "b"), ({"a": 1.0},))
    with pytest.raises(ValueError, match="'b' is not"):
        ErrorMatrix(("a", "b"), ({"a": 1.0}, {"a": 1.0}))


def test_read_from_metrics():
    steps = [{"errors": {}}, {"errors": {"a": {"top1_error": 1.5, "images": 3}, "b": {"top1_error": 2.5}}}]
    assert read_matrix({"tasks": ["a", "b"], "steps": steps}).average_error() == 2.0
