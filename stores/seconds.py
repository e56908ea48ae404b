"""Durations that a user sets by environment variables."""

from __future__ import annotations

import os


def seconds_of(variable: str, default: float, hint: str, *, zero: bool = True) -> float:
    """Return the seconds that an environment variable says, ``default`` where it is not set.

    Parameters
    ----------
    hint
        What to give instead of what is refused.
    zero
        Whether 0 is a duration.

    Raises
    ------
    ValueError
        If the variable is no number of seconds.
    """
    text = os.environ.get(variable, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not (seconds > 0 or (zero and seconds == 0)):
        raise ValueError(f"{variable} is {text!r}; give {hint}")
    return seconds
