"""What a change does to a file, told without showing more of the file than it changes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

__all__ = ["difference"]

_KEY: Final = re.compile(r'"\s*:')


def difference(old: str, new: str) -> Iterator[str]:
    """Lines that go (`-`) and come (`+`), each group with its place; none that stay.

    Other servers' secrets lie around them: a line of theirs that gets or loses a comma is shown
    as that comma, and one with several keys in it as what differs.
    """
    before, after = old.splitlines(), new.splitlines()
    # Compared line by line are only those in between: such a file may have a hundred thousand.
    same = _common(before, after)
    tail = _common(before[same:][::-1], after[same:][::-1])
    before, after = before[same : len(before) - tail], after[same : len(after) - tail]
    for kind, start, end, first, last in SequenceMatcher(None, before, after, False).get_opcodes():
        if kind == "equal":
            continue
        yield f"@@ line {same + first + 1} @@"
        gone, come = before[start:end], after[first:last]
        if gone and come and _alike(gone[0], come[0]):
            gone[0], come[0] = _apart(gone[0], come[0])
        yield from (f"-{line}" for line in gone if line)
        yield from (f"+{line}" for line in come if line)


def _alike(old: str, new: str) -> bool:
    several = any(len(_KEY.findall(line)) > 1 for line in (old, new))
    return several or old.rstrip(",") == new.rstrip(",")


def _apart(old: str, new: str) -> tuple[str, str]:
    """Without what both begin and end with."""
    start = _common(old, new)
    old, new = old[start:], new[start:]
    end = _common(old[::-1], new[::-1])
    lead, rest = ("…" if start else ""), ("…" if end else "")
    gone, come = (part[: len(part) - end] for part in (old, new))
    return gone and lead + gone + rest, come and lead + come + rest


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How much both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
