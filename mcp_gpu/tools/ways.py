"""How the answers of a fleet came, and why some did not come by a better path."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mcp_gpu.fleet.model import PassedOver
from mcp_gpu.fleet.router import NodeAnswer
from mcp_gpu.tools.spans import counted

__all__ = ["passed_over", "ways", "ways_line"]

_SAID: dict[PassedOver, str] = {
    "unreachable": "does not reach",
    "denied": "is denied to",
    "not_running": "finds no agent on",
    "broken": "breaks to",
    "timeout": "times out to",
    "bad_response": "meets somebody else on",
    "slow": "is slow to",
    "untried": "is not yet tried for",
}
"""Why answers did not come over a path, such as "http times out to 3 nodes"."""


class HasWays(Protocol):
    """An answer that tells how its parts came."""

    @property
    def ways(self) -> Mapping[str, int]: ...

    @property
    def passed_over(self) -> Mapping[str, Mapping[str, int]]: ...


def ways(answers: Sequence[NodeAnswer[Any]]) -> dict[str, int]:
    """How many answers came over each path."""
    return dict(Counter(answer.via for answer in answers).most_common())


def passed_over(answers: Sequence[NodeAnswer[Any]]) -> dict[str, dict[str, int]]:
    """Of each path that some answers should have come over: why not, and how many."""
    whys: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for answer in answers:
        for via, why in answer.passed_over:
            whys[via][why] += 1
    return {via: dict(reasons.most_common()) for via, reasons in whys.items()}


def ways_line(told: HasWays, *, see: str) -> str:
    """How the answers came, why some did not come by a better path, and what knows more."""
    ways = ", ".join(f"{count} over {via}" for via, count in told.ways.items())
    whys = ", ".join(
        f"{via} {said} {counted(whys[why])}"
        for via, whys in told.passed_over.items()
        for why, said in _SAID.items()
        if why in whys
    )
    return f"{ways} ({whys}: see {see})"
