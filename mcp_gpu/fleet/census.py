"""The fleet at a glance: how many paths are in which state, and the path to each node."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from mcp_gpu.fleet.discovery import Table
from mcp_gpu.fleet.knowledge import Knowledge
from mcp_gpu.fleet.paths import PathStatus

__all__ = ["NO_AGENT", "NO_PATH", "UNTRIED", "Census", "take"]

NO_PATH: Final = "none"
"""Every path to the node's agent has failed."""

UNTRIED: Final = "untried"
"""Some path has neither proved itself nor failed of late: nobody has asked the node."""

NO_AGENT: Final = "absent"
"""A node that should have an agent, and has none that could be asked."""


@dataclass(frozen=True, slots=True)
class Census:
    """Counted once."""

    paths: Counter[tuple[str, PathStatus]] = field(default_factory=Counter)
    """Paths to agents, by transport and status."""
    nodes: dict[str, str] = field(default_factory=dict)
    """The path in use by node, or one of the words above."""


def take(table: Table, known: Knowledge) -> Census:
    """Of the agents that discovery knows. Asks nobody."""
    census = Census()
    for target in table.targets:
        statuses = known.statuses(target)
        census.paths.update(statuses.items())
        path = next((via for via, status in statuses.items() if status == "in_use"), None)
        name = known.node(target) or str(target)
        # Of a node's two agents, as during an update, one that is reached tells of the node.
        if path is not None:
            census.nodes[name] = path
        else:
            census.nodes.setdefault(name, UNTRIED if "untried" in statuses.values() else NO_PATH)
    for absent in table.absent:
        census.nodes.setdefault(absent.node, NO_AGENT)
    return census
