"""A series as one line of blocks: `sparkline`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["sparkline"]

_BLOCKS: Final = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_UNKNOWN: Final = "\u00b7"


def sparkline(
    values: Sequence[float | None], *, low: float | None = None, high: float | None = None
) -> str:
    """A block for each value, a dot where there is none.

    Args:
        low: what the lowest block stands for; None: the lowest value. As is `high`.
    """
    known = [value for value in values if value is not None]
    if not known:
        return _UNKNOWN * len(values)
    bottom = min(known) if low is None else low
    span = (max(known) if high is None else high) - bottom
    return "".join(
        _UNKNOWN if value is None else _block((value - bottom) / span if span > 0 else 0.0)
        for value in values
    )


def _block(share: float) -> str:
    return _BLOCKS[min(max(int(share * len(_BLOCKS)), 0), len(_BLOCKS) - 1)]
