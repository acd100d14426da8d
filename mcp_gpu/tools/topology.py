"""`get_nvlink_topology` as an agent serves it: how the GPUs of its own node are joined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.inventory import FRESH_TIMEOUT_SECONDS, MAX_AGE_SECONDS, AgentArguments
from mcp_gpu.tools.topology_model import NAME, NodeTopology

if TYPE_CHECKING:  # a gateway runs where there is no NVML, and shares only the models
    from mcp_gpu.gpu.collector import Collector

__all__ = ["AgentArguments", "agent_tool"]


def agent_tool(node: str, collector: Collector) -> Tool[AgentArguments]:
    """The tool over one node."""

    async def run(arguments: AgentArguments, call: Call) -> Answer:
        # Only answering needs them, and every start is timed.
        from mcp_gpu.tools.topology_answer import of_node
        from mcp_gpu.tools.topology_text import node_text

        snapshot = await collector.complete(
            max_age_seconds=MAX_AGE_SECONDS, timeout_seconds=FRESH_TIMEOUT_SECONDS
        )
        found = of_node(node, snapshot, collector.past(), arguments.detail)
        return Answer(node_text(found), found)

    return Tool(
        name=NAME,
        title="How this node's GPUs are joined",
        description=(
            "Show how this node's NVIDIA GPUs are joined: the matrix of nvidia-smi topo -m "
            "(NVLinks, PCIe, NUMA), NVSwitches, peer access, fabric clique, and traffic now "
            "(Hopper and later). What differs among GPUs that should be alike comes first: links "
            "that are down, a GPU on the wrong CPU, a missing peer access."
        ),
        arguments=AgentArguments,
        result=NodeTopology,
        run=run,
    )
