"""What a source of agents gives: a table that is always at hand and says how old it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import anyio
from anyio.abc import TaskStatus

from transports.base import Target

__all__ = ["AbsentAgent", "Discovery", "DiscoveryError", "Explanation", "Table"]


class DiscoveryError(Exception):
    """No agent table can be had: bad input, or nothing has been found out yet."""


@dataclass(frozen=True, slots=True)
class AbsentAgent:
    """A node that should have an agent, and has none that could be asked."""

    node: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the source knows of an agent that is not well: told if the agent does not answer."""

    text: str
    stopped: bool
    """It is known not to run: that explains its silence better than what the network says."""


@dataclass(frozen=True, slots=True)
class Table:
    """The agents known, and since when."""

    targets: tuple[Target, ...]
    as_of: float
    """Unix seconds at which the source last confirmed this table."""
    source: str
    """For people: `static list`, `DNS agents.gpu.svc`."""
    problem: str | None = None
    """Why the table could not be refreshed since `as_of`, or what it lacks; None for neither."""
    absent: tuple[AbsentAgent, ...] = ()
    explanations: Mapping[str, Explanation] = field(default_factory=dict)
    """By `Target.key`."""


class Discovery(Protocol):
    """A source of agents."""

    def table(self) -> Table:
        """The latest table, at once.

        Raises:
            DiscoveryError: nothing has been found out yet; the text says why.
        """

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the table current until cancelled. Started once the first look has ended."""
