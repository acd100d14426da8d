"""`check_connectivity`: which paths lead to which nodes, which do not, and why. Gateways only."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.fleet.connectivity.checkup import Checkup
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.connectivity_report import FleetConnectivity, page, whole
from mcp_gpu.tools.connectivity_text import lines
from mcp_gpu.tools.fleet_arguments import FleetArguments, asking

__all__ = ["NAME", "ConnectivityArguments", "connectivity_tool"]

NAME = "check_connectivity"


class ConnectivityArguments(FleetArguments):
    """What to look at."""

    every_path: bool = Field(
        default=False,
        description="Try all paths of all nodes even in a large fleet: opens a stream to each.",
    )


def connectivity_tool(checkup: Checkup) -> Tool[ConnectivityArguments]:
    """The tool over a gateway's agents."""

    async def run(arguments: ConnectivityArguments, call: Call) -> Answer:
        async def progress(done: int, total: int, message: str) -> None:
            await call.progress(done, total, message)

        with asking():
            found = await checkup.run(
                nodes=arguments.only, every_path=arguments.every_path, progress=progress
            )
        everything = whole(found)
        told = page(everything, arguments.limit, arguments.cursor)
        # A later page tells of its own nodes alone.
        unwell = everything.nodes if arguments.cursor is None else told.nodes
        return Answer("\n".join(lines(told, unwell)), told)

    return Tool(
        name=NAME,
        title="Connectivity of the fleet",
        description=(
            "Try every network path from the gateway to the agent of every node and say which "
            "work, which one calls use and why, and what is broken: a named cause with evidence "
            "and the commands that mend it. Ask when nodes do not answer, or answer over another "
            "path than http. Takes up to a minute. Changes nothing."
        ),
        arguments=ConnectivityArguments,
        result=FleetConnectivity,
        run=run,
    )
