"""Checks of what can be chosen about an export."""

from typing import Any


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Checks that a setting is an integer in a range.

    Args:
        name: The setting's name.
        value: What was given.
        least: The smallest that is valid.
        most: The largest; any if None.

    Raises:
        ValueError: If not; the message says what is valid.
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value and (most is None or value <= most):
        return
    valid = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} must be an integer {valid}. Received: {name}={value!r}.")
