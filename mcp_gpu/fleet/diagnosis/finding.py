"""What one cause's examination comes to, before all are weighed against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from mcp_gpu.fleet.diagnosis.model import Cause, Code, Confidence

__all__ = ["SHOWN", "Concern", "Finding", "Judgement", "RuledOut", "few"]

SHOWN = 3
"""How many nodes are named before the rest is a number."""

Concern = Literal["http", "streams"]
"""Which kind of path a cause stops. One that stops both, such as a dead agent, counts as `http`."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause that fits."""

    code: Code
    title: str
    confidence: Confidence
    nodes: tuple[str, ...]
    evidence: tuple[str, ...]
    fix: tuple[str, ...]
    concern: Concern = "http"
    excludes: tuple[Code, ...] = ()
    """What cannot be the cause of the same nodes' silence if this is."""

    def cause(self) -> Cause:
        """As an answer carries it."""
        return Cause(
            code=self.code,
            title=self.title,
            confidence=self.confidence,
            node_count=len(self.nodes),
            nodes=self.nodes[:SHOWN],
            evidence=self.evidence,
            fix=self.fix,
        )


@dataclass(frozen=True, slots=True)
class RuledOut:
    """A cause that something speaks against."""

    code: Code
    why: str


Judgement = Finding | RuledOut | None
"""None: nothing speaks for the cause, and nothing against it."""


def few(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    listed: Sequence[str] = tuple(names)
    more = len(listed) - SHOWN
    return ", ".join(listed[:SHOWN]) + (f" and {more} more" if more > 0 else "")
