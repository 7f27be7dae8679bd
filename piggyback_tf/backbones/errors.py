"""Errors of this folder that callers may want to catch."""


class WeightsError(ValueError):
    """The weights that were asked for cannot be had; the message says why and what to do."""


def one_line(error: BaseException, limit: int = 400) -> str:
    """Returns the message of an error from another library on one line, cut off at `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."
