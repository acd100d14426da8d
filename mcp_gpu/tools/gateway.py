"""The tools of a gateway. The module of each is imported at its first call: a start has no use for
it, nor for what it imports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mcp_gpu.registry import Makers, Tool

if TYPE_CHECKING:
    from mcp_gpu.fleet.connectivity.checkup import Checkup
    from mcp_gpu.fleet.router import Router
    from mcp_gpu.workloads.reads import Workloads

__all__ = ["LISTING", "makers"]

LISTING: Final = Path(__file__).with_name("gateway.json")
"""What clients are shown of them; `make test ARGS=--update-golden` writes it."""


def makers(router: Router, checkup: Checkup, workloads: Workloads) -> Makers:
    """What makes the tools over a fleet, by name."""

    def health() -> Tool[Any]:
        from mcp_gpu.tools.fleet_health import gateway_tool

        return gateway_tool(router)

    def inventory() -> Tool[Any]:
        from mcp_gpu.tools.fleet_inventory import gateway_tool

        return gateway_tool(router)

    def xids() -> Tool[Any]:
        from mcp_gpu.tools.fleet_xids import gateway_tool

        return gateway_tool(router)

    def allocation() -> Tool[Any]:
        from mcp_gpu.tools.fleet_allocation import gateway_tool

        return gateway_tool(router, workloads)

    def processes() -> Tool[Any]:
        from mcp_gpu.tools.fleet_processes import gateway_tool

        return gateway_tool(router)

    def timeline() -> Tool[Any]:
        from mcp_gpu.tools.fleet_timeline import gateway_tool

        return gateway_tool(router)

    def topology() -> Tool[Any]:
        from mcp_gpu.tools.fleet_topology import gateway_tool

        return gateway_tool(router)

    def failure() -> Tool[Any]:
        from mcp_gpu.tools.explain_failure import gateway_tool

        return gateway_tool(router, workloads)

    def incident() -> Tool[Any]:
        from mcp_gpu.tools.incident import gateway_tool

        return gateway_tool(router, workloads)

    def explain() -> Tool[Any]:
        from mcp_gpu.tools.explain_xid import explain_tool

        return explain_tool()

    def connectivity() -> Tool[Any]:
        from mcp_gpu.tools.check_connectivity import connectivity_tool

        return connectivity_tool(checkup)

    def describe() -> Tool[Any]:
        from mcp_gpu.tools.fleet_node import gateway_tool

        return gateway_tool(router, workloads)

    return {
        "analyze_xid_errors": xids,
        "check_connectivity": connectivity,
        "describe_gpu_node": describe,
        "explain_failure": failure,
        "explain_xid": explain,
        "get_gpu_health": health,
        "get_gpu_inventory": inventory,
        "get_gpu_processes": processes,
        "get_gpu_timeline": timeline,
        "get_incident_report": incident,
        "get_nvlink_topology": topology,
        "get_pod_gpu_allocation": allocation,
    }
