"""What `get_nvlink_topology` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.wire import Wire
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.topology_model import NodeTopology

__all__ = ["AlikeNodes", "Domain", "FleetNodeTopology", "FleetTopology"]


class FleetNodeTopology(NodeTopology):
    """One node's topology and how it was had. In a summary without its matrix and GPUs."""

    via: str = Field(description="Path the answer took: http, command, ...")
    odd: tuple[str, ...] = Field(
        description="Why it stands out: what differs within it, what is unknown, or that most "
        "nodes with the same GPUs are wired otherwise."
    )


class AlikeNodes(Wire):
    """Nodes that are wired alike."""

    shape: str
    nodes: int
    names: str = Field(description="As ranges; the longest, the rest counted.")


class Domain(Wire):
    """GPUs that reach each other by NVLink across nodes: one clique of one fabric."""

    cluster_uuid: str
    clique_id: int
    nodes: int
    gpus: int
    names: str = Field(description="As ranges; the longest, the rest counted.")
    missing: tuple[str, ...] = Field(
        description="GPUs of its nodes, and nodes of its chassis, that are not in it."
    )
    missing_omitted: int


class FleetTopology(FleetAnswer):
    """How the GPUs of the fleet are joined. Counts are over all nodes, whatever is listed."""

    nodes_odd: int
    alike: tuple[AlikeNodes, ...] = Field(description="Most nodes first.")
    alike_omitted: int = Field(description="Kinds of wiring that are not among them.")
    domains: tuple[Domain, ...] = Field(
        description="Fabrics over several nodes (NVLink of a rack); those with missing members "
        "first. Nodes that did not answer may belong to one."
    )
    domains_omitted: int
    nodes: tuple[FleetNodeTopology, ...] = Field(
        description="Odd ones first, then by name. Those without anything odd are counted in "
        "`alike`, not listed, but for those in `nodes` of the call, or with detail full."
    )
