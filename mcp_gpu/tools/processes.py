"""`get_gpu_processes` as an agent serves it: what runs on the GPUs of its own node."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from pydantic import Field

from mcp_gpu.registry import Answer, Arguments, Call, Tool
from mcp_gpu.tools.processes_model import NAME, NodeProcesses
from mcp_gpu.tools.xids import within

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the words
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.node.holdings import Holdings
    from mcp_gpu.node.occupants import Occupants
    from mcp_gpu.tools.allocation import Processes, SeenProcesses

__all__ = ["LISTED", "AgentArguments", "agent_tool", "seen"]

TEXT_CHARS: Final = 8_000
LINE_CHARS: Final = 400

LISTED: Final = 200
"""Most processes of one node: a gateway takes no answer of more than 256 KiB."""


class AgentArguments(Arguments):
    """What an agent may be asked about its node."""

    limit: int = Field(
        default=100, ge=0, le=LISTED, description="Most processes to list; the rest are counted."
    )


def agent_tool(
    node: str,
    collector: Collector,
    occupants: Occupants,
    holdings: Callable[[], Awaitable[Holdings]] | None = None,
) -> Tool[AgentArguments]:
    """The tool over one node.

    Args:
        occupants: who is on the GPUs.
        holdings: which pods hold which GPUs; None where nobody says.
    """

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        # What only answers need.
        from mcp_gpu.tools.processes_account import account
        from mcp_gpu.tools.processes_text import node_lines

        occupancy = await occupants.look()
        held = None if holdings is None else await holdings()
        told = account(node, collector.snapshot, occupancy, held, limit=arguments.limit)
        return Answer("\n".join(within(node_lines(told), TEXT_CHARS, LINE_CHARS)), told)

    return Tool(
        name=NAME,
        title="Processes on this node's GPUs",
        description=(
            "List the processes on this node's NVIDIA GPUs: pid, program, memory, share of the "
            "GPU's time, and the pod and container they are of; first those outside of any "
            "allocation. Says what GPU memory no process accounts for, and where processes cannot "
            "be seen: then an empty list means nothing."
        ),
        arguments=AgentArguments,
        result=NodeProcesses,
        run=run,
    )


def seen(collector: Collector, occupants: Occupants) -> Processes:
    """What `get_pod_gpu_allocation` asks for: which of them are of which pod."""

    async def look() -> SeenProcesses:
        from mcp_gpu.tools.processes_account import seen_processes

        return seen_processes(collector.snapshot, await occupants.look())

    return look
