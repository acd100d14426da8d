"""What trying every path to every agent has shown: the input of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transports.base import Target
from transports.errors import Symptom

__all__ = ["NodeSurvey", "Outcome", "PathResult", "Place", "Survey"]

Outcome = Literal["ok", "wrong_identity", "not_tried"] | Symptom
"""`wrong_identity`: somebody else answers. Otherwise how the failure looks, `large_lost` being that
small answers arrive and padded ones do not."""


@dataclass(frozen=True, slots=True)
class PathResult:
    """One path to one agent, tried once."""

    via: str
    """Transport name."""
    outcome: Outcome
    message: str = ""
    """What the transport said, or why the path was not tried; empty for `ok`."""
    seconds: float | None = None
    """To the padded answer of an `ok`, to the failure otherwise; None if not tried."""


@dataclass(frozen=True, slots=True)
class NodeSurvey:
    """One agent and its paths, in the order of preference."""

    node: str
    target: Target
    paths: tuple[PathResult, ...]
    in_use: str = ""
    """Transport that calls take at present; empty for none."""
    why: str = ""
    """Why that one, in a few words."""
    explanation: str = ""
    """What discovery knows of an agent that is not well."""

    def path(self, via: str) -> PathResult | None:
        """The result of that transport, if it applies to the agent."""
        return next((each for each in self.paths if each.via == via), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the gateway itself runs. Empty fields are not known, as on a laptop."""

    node: str = ""
    pod: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """All agents, sorted by node."""

    place: Place
    nodes: tuple[NodeSurvey, ...]
    absent: tuple[tuple[str, str], ...] = ()
    """Nodes without an agent that could be asked, each with the reason."""
