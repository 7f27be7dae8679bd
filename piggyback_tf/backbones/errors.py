"""Errors of this folder that callers may want to catch."""


class WeightsError(ValueError):
    """The weights that were asked for cannot be had; the message says why and what to do."""
