"""A moment as a file tells it: `moment`, which believes none that no clock can have shown."""

from __future__ import annotations

from typing import Any, Final

__all__ = ["LATEST", "moment"]

LATEST: Final = float(1 << 33)
"""In the year 2242. What is later is damage, and would outrank all that is recorded."""


def moment(told: Any) -> float:
    """Seconds on the recorder's axis.

    Raises:
        TypeError, ValueError, OverflowError: it is no moment.
    """
    at = float(told)
    if not 0 <= at <= LATEST:
        raise ValueError("no moment")
    return at
