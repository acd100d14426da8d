"""`analyze_xid_errors` as a gateway serves it: what happened anywhere, patterns told once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import Field

from mcp_gpu.fleet.router import FanOut, NodeAnswer, Router
from mcp_gpu.gpu.actions import ACTIONS, heaviest, weight
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_answer import Place, begin, of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.fleet_xids_model import FleetNodeXids, FleetXids, Pattern
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.pages import page, short
from mcp_gpu.tools.spans import clipped, counted
from mcp_gpu.tools.ways import ways_line
from mcp_gpu.tools.xid_patterns import gaps, patterns, totals
from mcp_gpu.tools.xids import group_lines, then, within, xids_line
from mcp_gpu.tools.xids_model import BOOT, NAME, Codes, NodeXids, Since

__all__ = ["GatewayArguments", "asked_of_agents", "gateway_tool", "lines", "whole"]

TEXT_CHARS: Final[dict[Detail, int]] = {"summary": 8_000, "full": 30_000}
"""The text is never longer, whatever happened on however many nodes."""

PATTERNS_LISTED: Final = 30
TOTALS_LISTED: Final = 40
MISSED_LISTED: Final = 16
"""Told one by one; the rest are counted."""

PATTERN_CHARS: Final = 1_000
"""Length of any text in a pattern. What it means is told here and nowhere else."""

GROUPS: Final[dict[Detail, int]] = {"summary": 0, "full": 20}
"""Groups of Xids with sample lines that each node is asked for."""

DEVICES: Final = 8
CHAINS: Final = 3
NOTES: Final = 4
NOTE_CHARS: Final = 240
"""Told of one node in a summary."""

PATTERNS_TOLD: Final = 14
TOTALS_TOLD: Final = 16
MISSED_TOLD: Final = 4
"""Told in the text."""

RANKS: Final = {action: -weight(action) for action in ACTIONS}
"""Of the actions that nodes are sorted by, the heaviest first."""


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about the fleet's Xids."""

    since: Since = BOOT
    codes: Codes = None
    detail: Detail = Field(
        default="summary", description="full: also each node's groups of Xids with sample lines."
    )


def asked_of_agents(arguments: GatewayArguments) -> dict[str, object]:
    """What each agent is asked."""
    asked: dict[str, object] = {"since": arguments.since, "limit": GROUPS[arguments.detail]}
    if arguments.codes is not None:
        asked["codes"] = arguments.codes
    return asked


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        start = begin(arguments.cursor, RANKS, tool=NAME)
        found = await asked(router, NAME, asked_of_agents(arguments), NodeXids, arguments, call)
        everything = whole(found, every_node=arguments.only is not None)
        told = _page(everything, arguments, start)
        text = within(lines(told, arguments.detail, arguments.codes), TEXT_CHARS[arguments.detail])
        return Answer("\n".join(text), told)

    return Tool(
        name=NAME,
        title="Xid errors of the fleet",
        description=(
            "Say what the Xid errors of all nodes mean together: causes with what followed from "
            "them, NVIDIA's action for each, what many nodes share told once with the nodes and "
            "GPUs that have it, rare and grave codes before floods, and which Xids nodes could "
            "not see. With detail full, sample lines. explain_xid explains a code or a line."
        ),
        arguments=GatewayArguments,
        result=FleetXids,
        run=run,
    )


def whole(found: FanOut[NodeXids], *, every_node: bool = False) -> FleetXids:
    """All of the fleet at once.

    Args:
        every_node: list nodes without Xids, too.
    """
    nodes = sorted(map(_of_fleet, found.answers), key=_place)
    alike, counts, missing = patterns(nodes), totals(nodes), gaps(nodes)
    return FleetXids(
        **shared(found),
        xids=sum(node.xids for node in nodes),
        nodes_with_xids=sum(node.xids > 0 for node in nodes),
        nodes_without_xids=sum(not node.xids and not node.blind for node in nodes),
        nodes_blind=sum(node.blind and not node.xids for node in nodes),
        patterns=tuple(short(each, PATTERN_CHARS) for each in alike[:PATTERNS_LISTED]),
        patterns_omitted=max(len(alike) - PATTERNS_LISTED, 0),
        totals=tuple(map(short, counts[:TOTALS_LISTED])),
        totals_omitted=max(len(counts) - TOTALS_LISTED, 0),
        missed=tuple(map(short, missing[:MISSED_LISTED])),
        missed_omitted=max(len(missing) - MISSED_LISTED, 0),
        nodes=tuple(node for node in nodes if every_node or node.devices),
    )


def _of_fleet(answer: NodeAnswer[NodeXids]) -> FleetNodeXids:
    # An action that is not known here weighs nothing, and a cursor could not name it.
    action = heaviest(("NONE", *(device.action for device in answer.data.devices)))
    return of_fleet(FleetNodeXids, answer, action=action)


def _place(node: FleetNodeXids) -> Place:
    return -weight(node.action), node.node


def _page(everything: FleetXids, arguments: GatewayArguments, start: Place | None) -> FleetXids:
    """As many nodes as an answer holds, after those of the pages before."""
    return page(
        everything,
        [node for node in everything.nodes if start is None or _place(node) > start],
        first=start is None,
        limit=arguments.limit,
        detail=arguments.detail,
        shortened=_shortened,
        cursor=lambda node: f"{node.action} {node.node}",
    )


def _shortened(node: FleetNodeXids) -> FleetNodeXids:
    devices = [
        device.model_copy(
            update={
                "chains": device.chains[:CHAINS],
                "chains_omitted": device.chains_omitted + max(len(device.chains) - CHAINS, 0),
            }
        )
        for device in node.devices[:DEVICES]
    ]
    return node.model_copy(
        update={
            "devices": tuple(devices),
            "devices_omitted": node.devices_omitted + len(node.devices) - len(devices),
            "missed": tuple(clipped(what, NOTE_CHARS) for what in node.missed[:NOTES]),
        }
    )


def lines(told: FleetXids, detail: Detail, codes: Codes = None) -> Iterator[str]:
    """The fleet as text: what to do first, what could not be seen, who did not answer."""
    yield headline(told, codes)
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of these figures."
    if told.coverage.said_of_discovery:
        yield told.coverage.said_of_discovery
    yield from failure_lines(told.failures_by_reason, told.failures)
    for missed in told.missed[:MISSED_TOLD]:
        yield f"! {missed.where}: {missed.what}"
    left = len(told.missed) - MISSED_TOLD + told.missed_omitted
    if left > 0:
        yield f"! and {counted(left, 'more thing')} that could not be seen"
    for pattern in told.patterns[:PATTERNS_TOLD]:
        yield from _pattern(pattern)
    left = len(told.patterns) - PATTERNS_TOLD + told.patterns_omitted
    if left > 0:
        yield f"{counted(left, 'more pattern')} less grave, in the structured content"
    if told.totals:
        yield f"By code: {codes_line(told)}"
    if detail == "full":
        for node in told.nodes:
            yield f"{node.node}: {counted(node.xids, 'Xid')}  via {node.via}"
            yield from group_lines(node.groups)
    if told.passed_over:
        yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted} in detail: call again with cursor "{told.next_cursor}".'


def headline(told: FleetXids, codes: Codes = None) -> str:
    """`5 of 6 nodes answered: 214 Xids on 3 nodes, none on 1 node, UNKNOWN on 1 node`."""
    coverage = told.coverage
    parts = []
    if told.nodes_with_xids:
        parts.append(f"{xids_line(told.xids, codes)} on {counted(told.nodes_with_xids)}")
    if told.nodes_without_xids:
        none = "none" if parts else xids_line(0, codes)
        parts.append(f"{none} on {counted(told.nodes_without_xids)}")
    if told.nodes_blind:
        blind = f"UNKNOWN on {counted(told.nodes_blind)}, where no source of them can be read"
        parts.append(blind)
    answered = f"{coverage.nodes_answered} of {counted(coverage.nodes_asked)} answered"
    return f"{answered}: {', '.join(parts) or 'Xids UNKNOWN'}"


def codes_line(told: FleetXids) -> str:
    """`79 x1 (1 node), 45 x168000 (2 nodes)`."""
    parts = [
        f"{'SXid ' if total.kind == 'sxid' else ''}{total.code} x{total.count} "
        f"({counted(total.nodes)})"
        for total in told.totals[:TOTALS_TOLD]
    ]
    left = len(told.totals) - TOTALS_TOLD + told.totals_omitted
    return ", ".join(parts) + (f" and {counted(left, 'more code')}" if left > 0 else "")


def _pattern(pattern: Pattern) -> Iterator[str]:
    grave = "SETTLED" if pattern.settled else pattern.severity.upper()
    yield f"{grave} {pattern.told}: {pattern.action}: {pattern_size(pattern)}"
    yield f"  on {pattern.where}"
    yield f"  {pattern.explanation}{then(pattern.investigate)}"
    if not pattern.settled:
        yield f"  do: {pattern.advice}"


def pattern_size(pattern: Pattern) -> str:
    """`144 Xids, 72 GPUs on 18 nodes, 10:02:11Z to ...; all within a minute: likely one event`."""
    if pattern.code is None:
        return f"{counted(pattern.devices, 'GPU')} on {counted(pattern.nodes)}"
    devices = "NVSwitch" if pattern.kind == "sxid" else "GPU"
    where = f"{counted(pattern.devices, devices)} on {counted(pattern.nodes)}"
    when = pattern.first if pattern.first == pattern.last else f"{pattern.first} to {pattern.last}"
    together = "; all began within a minute: likely one event" if pattern.together else ""
    chain = " with what followed" if " -> " in pattern.told else ""
    return f"{counted(pattern.xids, 'Xid')}{chain}, {where}, {when}{together}"
