"""What `analyze_xid_errors` of a gateway answers, on the wire."""

from __future__ import annotations

from pydantic import Field

from mcp_gpu.gpu.health.model import Severity
from mcp_gpu.gpu.wire import Wire
from mcp_gpu.gpu.xid.model import Kind
from mcp_gpu.tools.fleet_answer import FleetAnswer
from mcp_gpu.tools.xids_model import NodeXids

__all__ = ["FleetNodeXids", "FleetXids", "Missed", "Pattern", "XidTotal"]


class FleetNodeXids(NodeXids):
    """One node's Xids and how they were had."""

    via: str = Field(description="Path the answer took: http, command, ...")
    action: str = Field(description="The heaviest that any device of the node asks for.")


class Pattern(Wire):
    """The same cause with the same outcome, on one device or on thousands."""

    kind: Kind
    code: int | None = Field(
        description="The cause's. Null: a driver asks for something, and no Xid tells why."
    )
    told: str = Field(description="The chain that came most often, such as 149 -> 154 -> 45.")
    severity: Severity
    action: str
    advice: str
    investigate: str = Field(description="NVIDIA's bucket for what to look into afterwards.")
    settled: bool = Field(description="Nothing is left to do: a reset or a reboot came since.")
    explanation: str
    xids: int
    nodes: int
    devices: int
    where: str = Field(description="Nodes and GPUs; of many the first, and how many more.")
    first: str = Field(description="Time in UTC, as is `last`; empty without an Xid.")
    last: str
    together: bool = Field(
        description="It began on all of them within a minute: likely one event, as of a switch, "
        "a fabric or a rack."
    )


class XidTotal(Wire):
    """How often one code came over all nodes that answered."""

    kind: Kind
    code: int
    name: str
    count: int
    nodes: int
    devices: int


class Missed(Wire):
    """Xids that nodes may have had and could not see."""

    what: str
    nodes: int
    where: str


class FleetXids(FleetAnswer):
    """The Xids of the fleet. Counts and patterns are over all nodes, whatever is listed."""

    xids: int
    nodes_with_xids: int
    nodes_without_xids: int = Field(description="Of those that could look.")
    nodes_blind: int = Field(description="Nodes that can read no source of Xids: unknown.")
    patterns: tuple[Pattern, ...] = Field(description="What to do first comes first.")
    patterns_omitted: int
    totals: tuple[XidTotal, ...] = Field(description="The rare and grave first, floods last.")
    totals_omitted: int
    missed: tuple[Missed, ...]
    missed_omitted: int
    nodes: tuple[FleetNodeXids, ...] = Field(
        description="Heaviest action first, then by name. Nodes without Xids are counted, not "
        "listed, but for those in `nodes` of the call."
    )
