"""Many node names in few words: `n0004-n0123 and 45 more`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

__all__ = ["counted", "spans"]

SPANS_TOLD = 3
"""Ranges or single names told; the rest are counted."""

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


def spans(names: Collection[str], *, count: int | None = None) -> str:
    """The names, with neighbours by number drawn together; of many ranges the longest.

    Args:
        count: how many there are, where `names` are but the first.
    """
    longest = sorted(_runs(sorted(names)), key=len, reverse=True)[:SPANS_TOLD]
    left = (len(names) if count is None else count) - sum(map(len, longest))
    return ", ".join(map(_shown, sorted(longest))) + (f" and {left} more" if left > 0 else "")


def counted(count: int, noun: str = "node") -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _runs(names: list[str]) -> Iterator[list[str]]:
    run: list[str] = []
    for name in names:
        if run and not _follows(run[-1], name):
            yield run
            run = []
        run.append(name)
    if run:
        yield run


def _follows(one: str, other: str) -> bool:
    before, after = _NUMBERED.fullmatch(one), _NUMBERED.fullmatch(other)
    if before is None or after is None or before[1] != after[1]:
        return False
    # As wide, so that both read as one row and sort as they count.
    return len(before[2]) == len(after[2]) and int(after[2]) == int(before[2]) + 1


def _shown(run: list[str]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run)
