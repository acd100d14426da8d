"""What one agent's paths teach about another's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from transports.errors import Reason

__all__ = ["Lessons"]

LASTS_SECONDS = 60.0
"""How long a lesson counts. The background tries a dead direct path more often than that, so it
lasts for as long as the network is broken."""

AGENTS = 3
"""So many agents must say the same before others are believed to be like them; fewer where fewer
are known. Being wrong costs one stream, which the background makes good for."""

_OF_THE_WAY: tuple[Reason, ...] = ("unreachable", "timeout", "broken")
"""Reasons that lie on the way. The others are the agent's own, or a matter of access."""


@dataclass(slots=True)
class _Lesson:
    dead: dict[str, float] = field(default_factory=dict)
    """Agents of other nodes on which the path failed since it last worked for one, and when: the
    latest `AGENTS`."""
    dead_at: float = -math.inf
    """When it last failed, for an agent of whatever node."""
    worked_at: float = -math.inf
    """When it last worked, for an agent of another node."""


class Lessons:
    """Which paths are dead for agents in general, by cluster and path.

    Only a dead path teaches, not a dead agent: the agent must have answered over another path.

    Args:
        clock: seconds, as of `time.monotonic`.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lessons: defaultdict[tuple[str, str], _Lesson] = defaultdict(_Lesson)

    def worked(self, cluster: str, via: str, *, elsewhere: bool) -> None:
        """The path worked. `elsewhere`: for an agent on another node than ours."""
        if elsewhere:
            lesson = self._lessons[cluster, via]
            lesson.worked_at = self._clock()
            lesson.dead.clear()

    def failed(
        self, cluster: str, via: str, key: str, reason: Reason, at: float, *, elsewhere: bool
    ) -> None:
        """The path failed at that time for an agent that answered over another."""
        if reason in _OF_THE_WAY:
            lesson = self._lessons[cluster, via]
            lesson.dead_at = max(lesson.dead_at, at)
            if elsewhere and at > lesson.worked_at:
                lesson.dead[key] = at
                if len(lesson.dead) > AGENTS:
                    del lesson.dead[min(lesson.dead, key=lesson.dead.__getitem__)]

    def shown_dead(self, cluster: str, via: str) -> bool:
        """Whether the path was seen dead for any agent lately: waiting for it pays less."""
        lesson = self._lessons.get((cluster, via))
        return lesson is not None and lesson.dead_at > self._clock() - LASTS_SECONDS

    def dead_elsewhere(self, cluster: str, via: str, agents: int) -> bool:
        """Whether the path has failed for all agents on other nodes lately.

        Args:
            agents: how many are known there, this one included.
        """
        lesson = self._lessons.get((cluster, via))
        if lesson is None or not lesson.dead:
            return False
        enough = max(min(AGENTS, agents - 1), 1)
        since = self._clock() - LASTS_SECONDS
        return sum(at > since for at in lesson.dead.values()) >= enough
