"""One look at how the fleet is reached: a survey, and what it means."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from mcp_gpu.fleet.connectivity.model import Survey
from mcp_gpu.fleet.connectivity.survey import Progress, Surveyor
from mcp_gpu.fleet.diagnosis.model import Diagnosis
from mcp_gpu.fleet.discovery import Discovery, DiscoveryError, Table

__all__ = ["Checkup", "Findings"]


@dataclass(frozen=True, slots=True)
class Findings:
    """What was looked at, what it showed, and what that means."""

    table: Table
    nodes_known: int
    survey: Survey
    diagnosis: Diagnosis


class Checkup:
    """Surveys the agents that discovery knows, and has the survey diagnosed."""

    def __init__(
        self,
        discovery: Discovery,
        surveyor: Surveyor,
        diagnose: Callable[[Survey], Awaitable[Diagnosis]],
    ) -> None:
        self.discovery = discovery
        self._surveyor = surveyor
        self._diagnose = diagnose

    async def run(
        self,
        *,
        nodes: Collection[str] | None = None,
        every_path: bool = False,
        progress: Progress | None = None,
    ) -> Findings:
        """Look at all nodes, or at those of `nodes`.

        Raises:
            DiscoveryError: no agents are known at all.
            UnknownNodes: `nodes` names some that discovery does not know.
        """
        table = self.discovery.table()
        if not table.targets and not table.absent:
            raise DiscoveryError(f"{table.source}: {table.problem or 'no agents there'}")
        survey = await self._surveyor.survey(
            table, nodes=nodes, every_path=every_path, progress=progress
        )
        known = len(self._surveyor.known(table))
        return Findings(table, known, survey, await self._diagnose(survey))
