"""What every fan-out tells beside its data: who failed and why, and how many answered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Attempt", "Coverage", "FailureReason", "NodeFailure", "PassedOver"]

FailureReason = Literal[
    "unreachable",
    "denied",
    "not_running",
    "broken",
    "timeout",
    "bad_response",
    "tool_error",
    "agent_too_old",
]
"""The closed list: the reasons of `transports.errors`, and two that only a whole call can have."""

PassedOver = FailureReason | Literal["slow", "untried"]
"""Why an answer did not come over a better path: that has failed, another was faster, or it is
yet to be tried."""


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True)


class Attempt(_Wire):
    """One path found wanting, now or when it was last tried."""

    via: str = Field(description="Path tried: http, command, ...")
    reason: FailureReason
    message: str


class NodeFailure(_Wire):
    """A known node that gave no answer. Its GPUs are unknown, not healthy."""

    node: str
    reason: FailureReason
    message: str = Field(description="What happened and what to do about it.")
    attempts: tuple[Attempt, ...] = ()


class Coverage(_Wire):
    """How much of the fleet an answer speaks for."""

    nodes_known: int
    nodes_asked: int = Field(description="After the `nodes` argument.")
    nodes_answered: int
    discovery: str = Field(description="Where the list of agents comes from.")
    discovery_age_seconds: float
    discovery_problem: str | None = None

    @property
    def said_of_discovery(self) -> str:
        """`Discovery, as of 3 s ago: ...` where something is wrong with it; else empty."""
        if not self.discovery_problem:
            return ""
        return f"Discovery, as of {self.discovery_age_seconds:.0f} s ago: {self.discovery_problem}"
