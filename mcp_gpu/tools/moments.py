"""Times as callers write them: `2h` for so long ago, or ISO 8601 with a zone."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

__all__ = ["moment", "seconds"]

_DURATION: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds(text: str) -> int | None:
    """Of a duration such as `30m`, `2h` or `3d`; None: it is none."""
    found = _DURATION.fullmatch(text)
    return None if found is None else int(found[1]) * _UNITS[found[2]]


def moment(text: str) -> float | None:
    """Unix seconds of an ISO 8601 time with its zone; None: it is none."""
    try:
        at = datetime.fromisoformat(text)
        return None if at.tzinfo is None else at.timestamp()
    except (ValueError, OverflowError):
        return None
