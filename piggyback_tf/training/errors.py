"""Errors of a training."""


class TrainingError(RuntimeError):
    """A training that cannot go on or must not be resumed; the message says what to change."""
