"""Several clusters as one fleet: each is watched by itself, and their tables stand side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import anyio
from anyio.abc import TaskStatus

from mcp_gpu.fleet.discovery.table import (
    AbsentAgent,
    Discovery,
    DiscoveryError,
    Explanation,
    Table,
)
from transports.base import Target

__all__ = ["ClustersDiscovery"]


class ClustersDiscovery:
    """The agents of several clusters.

    One that cannot be asked costs the others nothing: what ails it is part of the table's problem.

    Args:
        clusters: by the name that their nodes are shown under, `name/node`.
    """

    def __init__(self, clusters: Mapping[str, Discovery]) -> None:
        self._clusters = dict(clusters)

    def table(self) -> Table:
        """All tables there are, as old as the oldest of them."""
        found: dict[str, Table] = {}
        problems: list[str] = []
        for name, discovery in self._clusters.items():
            try:
                table = discovery.table()
            except DiscoveryError as error:
                problems.append(f"{name}: {error}")
                continue
            found[name] = table
            if table.problem is not None:
                problems.append(f"{name}: {table.problem}")
        problem = "; ".join(problems) or None
        if not found:
            raise DiscoveryError(problem or "no clusters")
        targets: list[Target] = []
        absent: list[AbsentAgent] = []
        explanations: dict[str, Explanation] = {}
        for name, table in found.items():
            for target in table.targets:
                placed = replace(target, cluster=name)
                targets.append(placed)
                if target.key in table.explanations:
                    explanations[placed.key] = table.explanations[target.key]
            absent += [replace(each, node=f"{name}/{each.node}") for each in table.absent]
        return Table(
            tuple(targets),
            min(table.as_of for table in found.values()),
            "; ".join(f"{name}: {table.source}" for name, table in found.items()),
            problem,
            tuple(absent),
            explanations,
        )

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with anyio.create_task_group() as watches:
            async with anyio.create_task_group() as looks:
                for discovery in self._clusters.values():
                    looks.start_soon(watches.start, discovery.run)
            task_status.started()
