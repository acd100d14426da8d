"""The tools of an agent. The module of each is imported at its first call: a start has no use for
it, nor for what it imports."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_gpu.registry import Makers, Tool

if TYPE_CHECKING:
    from mcp_gpu.gpu.collector import Collector
    from mcp_gpu.gpu.simulator import Node
    from mcp_gpu.node.sight import Sight
    from mcp_gpu.node.watch import XidWatch

__all__ = ["LISTING", "makers"]

LISTING: Final = Path(__file__).with_name("agent.json")
"""What clients are shown of them; `make test ARGS=--update-golden` writes it."""


def makers(
    node: str,
    collector: Collector,
    watch: XidWatch,
    sight: Callable[[], Sight],
    *,
    expected_gpus: int | None = None,
    simulated: Node | None = None,
) -> Makers:
    """What makes the tools over one node, by name.

    Args:
        sight: what the agent can look at now.
        expected_gpus: how many GPUs the node should have, where somebody has said so.
        simulated: the node, where it is none of metal.
    """

    def describe() -> Tool[Any]:
        from mcp_gpu.node import surroundings
        from mcp_gpu.tools.node import agent_tool

        if simulated is None:
            look = surroundings.look
        else:
            look = partial(surroundings.simulated, simulated)
        return agent_tool(node, collector, watch, sight, look, expected_gpus=expected_gpus)

    def health() -> Tool[Any]:
        from mcp_gpu.tools.health import agent_tool

        return agent_tool(node, collector, watch, sight, expected_gpus=expected_gpus)

    def inventory() -> Tool[Any]:
        from mcp_gpu.tools.inventory import agent_tool

        return agent_tool(node, collector)

    def xids() -> Tool[Any]:
        from mcp_gpu.tools.xids import agent_tool

        return agent_tool(node, collector, watch)

    def explain() -> Tool[Any]:
        from mcp_gpu.tools.explain_xid import explain_tool

        return explain_tool()

    return {
        "analyze_xid_errors": xids,
        "describe_gpu_node": describe,
        "explain_xid": explain,
        "get_gpu_health": health,
        "get_gpu_inventory": inventory,
    }
