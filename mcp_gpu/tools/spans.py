"""Many names or numbers in few words: `n0004-n0123 and 45 more`."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

__all__ = ["clipped", "counted", "numbers", "places", "spans"]

T = TypeVar("T", str, int)

SPANS_TOLD = 3
"""Ranges or single names told; the rest are counted."""

_NUMBERED = re.compile(r"(.*?)(\d+)", re.DOTALL)


def spans(names: Collection[str], *, count: int | None = None) -> str:
    """The names, with neighbours by number drawn together; of many ranges the longest.

    Args:
        count: how many there are, where `names` are but the first.
    """
    longest = sorted(_runs(sorted(names), _follows), key=len, reverse=True)[:SPANS_TOLD]
    left = (len(names) if count is None else count) - sum(map(len, longest))
    return ", ".join(map(_shown, sorted(longest))) + (f" and {left} more" if left > 0 else "")


def _first_spans(names: Collection[str], most: int) -> tuple[list[str], int]:
    """The first of all ranges, and how many names are not in them."""
    runs = list(_runs(sorted(names), _follows))
    return [_shown(run) for run in runs[:most]], sum(map(len, runs[most:]))


def places(members: Iterable[tuple[str, int | str | None]], *, most: int) -> str:
    """`n0003 GPU 3; n0010-n0019 GPU 0-7; n0020 NVSwitch 0000:c1:00`, of nodes and their devices.

    Args:
        members: each node with a GPU's index, the name of what has none, or nothing.
        most: ranges of node names or single ones told; the rest are counted.
    """
    indices: defaultdict[str, set[int]] = defaultdict(set)
    others: defaultdict[str, set[str]] = defaultdict(set)
    for node, device in members:
        indices[node].update((device,) if isinstance(device, int) else ())
        others[node].update((device,) if isinstance(device, str) else ())
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for node, gpus in indices.items():
        which = [f"GPU {numbers(gpus)}"] if gpus else []
        alike[(*which, *_first(sorted(others[node])))].append(node)
    told: list[str] = []
    left = 0
    for devices, nodes in alike.items():
        named, unnamed = _first_spans(nodes, most)
        most, left = most - len(named), left + unnamed
        if named:
            told.append(" ".join((", ".join(named), ", ".join(devices))).strip())
    return "; ".join(told) + (f" and {counted(left, 'more node')}" if left else "")


def _first(names: Sequence[str]) -> Sequence[str]:
    left = len(names) - SPANS_TOLD
    return names if left <= 0 else (*names[:SPANS_TOLD], f"{left} more")


def numbers(values: Collection[int]) -> str:
    """`0-3, 6`."""
    return ", ".join(map(_shown, _runs(sorted(values), lambda one, other: other == one + 1)))


def counted(count: int, noun: str = "node") -> str:
    """`1 node`, `2 nodes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def clipped(text: str, most: int) -> str:
    """The text, cut to so many characters."""
    return text if len(text) <= most else text[: most - 1] + "\u2026"


def _runs(values: Sequence[T], follows: Callable[[T, T], bool]) -> Iterator[list[T]]:
    run: list[T] = []
    for value in values:
        if run and not follows(run[-1], value):
            yield run
            run = []
        run.append(value)
    if run:
        yield run


def _follows(one: str, other: str) -> bool:
    before, after = _NUMBERED.fullmatch(one), _NUMBERED.fullmatch(other)
    if before is None or after is None or before[1] != after[1]:
        return False
    # As wide, so that both read as one row and sort as they count.
    return len(before[2]) == len(after[2]) and int(after[2]) == int(before[2]) + 1


def _shown(run: Sequence[object]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run))
