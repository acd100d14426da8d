"""`get_nvlink_topology` as a gateway serves it: nodes wired alike counted, odd ones told."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from pydantic import Field

from mcp_gpu.fleet.model import NodeFailure
from mcp_gpu.fleet.router import FanOut, Router
from mcp_gpu.registry import Answer, Call, Tool
from mcp_gpu.tools.failures import failure_lines
from mcp_gpu.tools.fleet_answer import Place, begin, of_fleet, shared
from mcp_gpu.tools.fleet_arguments import FleetArguments, asked
from mcp_gpu.tools.fleet_domains import domain_line, domains
from mcp_gpu.tools.fleet_topology_model import AlikeNodes, FleetNodeTopology, FleetTopology
from mcp_gpu.tools.inventory import Detail
from mcp_gpu.tools.pages import page, short
from mcp_gpu.tools.spans import clipped, counted, spans
from mcp_gpu.tools.topology_model import NAME, NodeTopology
from mcp_gpu.tools.topology_text import LINE_CHARS, node_lines
from mcp_gpu.tools.ways import ways_line
from mcp_gpu.tools.xids import within

__all__ = ["GatewayArguments", "alike_lines", "gateway_tool", "odd_lines", "whole"]

ALIKE_LISTED = 12
"""Kinds of wiring told one by one."""

DOMAINS_LISTED = 16

ODD_TOLD = 4
"""Reasons told of one odd node in the text."""

ODD_NODES = 16
"""Odd nodes told in the text of a summary; the structured content has more."""

TEXT_CHARS: dict[Detail, int] = {"summary": 8_000, "full": 30_000}

USUAL_NODES = 2
"""So many nodes wired alike at least, and more than half of those with the same GPUs, make
another odd: two that differ prove neither wrong."""

Boards = tuple[tuple[str, int], ...]

RANKS = {"odd": 0, "alike": 1}


class GatewayArguments(FleetArguments):
    """What a gateway may be asked about the fleet's wiring."""

    detail: Detail = Field(
        default="summary",
        description="full: every node with its matrix and GPUs, as for those in `nodes`.",
    )


def gateway_tool(router: Router) -> Tool[GatewayArguments]:
    """The tool as a gateway serves it: all agents asked at once, one answer."""

    async def run(arguments: GatewayArguments, call: Call) -> Answer:
        start = begin(arguments.cursor, RANKS, tool=NAME)
        found = await asked(
            router,
            NAME,
            {"detail": "full" if _singly(arguments) else "summary"},
            NodeTopology,
            arguments,
            call,
        )
        everything = whole(found)
        told = _page(everything, arguments, start)
        failures = everything.failures if start is None else ()
        lines = _lines(told, failures, arguments, first=start is None)
        room = TEXT_CHARS["full" if _singly(arguments) else "summary"]
        return Answer("\n".join(within(lines, room, LINE_CHARS)), told)

    return Tool(
        name=NAME,
        title="How the fleet's GPUs are joined",
        description=(
            "Show how the NVIDIA GPUs of all nodes are joined: nodes wired alike are counted, "
            "those with links down, a GPU on the wrong CPU, a missing peer access or another "
            "wiring than their like are named, and NVLink domains over several nodes told with "
            "the members that are missing. Name nodes, or ask for detail full, for the matrices "
            "of nvidia-smi topo -m and the traffic over NVLink."
        ),
        arguments=GatewayArguments,
        result=FleetTopology,
        run=run,
    )


def whole(found: FanOut[NodeTopology]) -> FleetTopology:
    """All of the fleet at once."""
    usual = _usual([answer.data for answer in found.answers])
    nodes = [
        of_fleet(FleetNodeTopology, each, odd=tuple(_oddities(each.data, usual)))
        for each in found.answers
    ]
    nodes.sort(key=_order)
    members: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes:
        members[node.shape].append(node.node)
    groups = sorted(members.items(), key=lambda group: (-len(group[1]), group[0]))
    fabrics = domains(nodes)
    return FleetTopology(
        **shared(found),
        nodes_odd=sum(bool(node.odd) for node in nodes),
        alike=tuple(
            short(AlikeNodes(shape=shape, nodes=len(names), names=spans(names)))
            for shape, names in groups[:ALIKE_LISTED]
        ),
        alike_omitted=max(len(groups) - ALIKE_LISTED, 0),
        domains=tuple(map(short, fabrics[:DOMAINS_LISTED])),
        domains_omitted=max(len(fabrics) - DOMAINS_LISTED, 0),
        nodes=tuple(nodes),
    )


def _boards(node: NodeTopology) -> Boards:
    return tuple(sorted(node.models.items()))


def _usual(nodes: Sequence[NodeTopology]) -> dict[Boards, tuple[str, int]]:
    """The wiring that most nodes with the same GPUs have, and how many have it."""
    kinds: defaultdict[Boards, Counter[str]] = defaultdict(Counter)
    for node in nodes:
        kinds[_boards(node)][node.shape] += 1
    return {
        boards: (shape, count)
        for boards, shapes in kinds.items()
        for shape, count in shapes.most_common(1)
        if count >= USUAL_NODES and 2 * count > shapes.total()
    }


def _oddities(node: NodeTopology, usual: dict[Boards, tuple[str, int]]) -> Iterator[str]:
    if node.message is not None:
        yield node.message
    yield from (each.text for each in node.asymmetries)
    if node.unknown:
        where, reason = next(iter(node.unknown.items()))
        more = len(node.unknown) - 1
        yield f"unknown for GPU {where}: {reason}" + (f", and {more} more" if more else "")
    shape, count = usual.get(_boards(node), (node.shape, 0))
    if shape != node.shape and not node.asymmetries:
        yield f"wired otherwise than {counted(count)} with the same GPUs ({shape}): {node.shape}"


def _order(node: FleetNodeTopology) -> Place:
    return RANKS[_rank(node)], node.node


def _rank(node: FleetNodeTopology) -> str:
    return "odd" if node.odd else "alike"


def _singly(arguments: GatewayArguments) -> bool:
    """Whether single nodes are to be told whole."""
    return arguments.detail == "full" or arguments.only is not None


def _page(
    everything: FleetTopology, arguments: GatewayArguments, start: Place | None
) -> FleetTopology:
    singly = _singly(arguments)
    return page(
        everything,
        [
            node
            for node in everything.nodes
            if (singly or node.odd) and (start is None or _order(node) > start)
        ],
        first=start is None,
        limit=arguments.limit,
        detail="full" if singly else "summary",
        shortened=_shortened,
        cursor=lambda node: f"{_rank(node)} {node.node}",
    )


def _shortened(node: FleetNodeTopology) -> FleetNodeTopology:
    nothing = dict.fromkeys(("matrix", "peer_access", "asymmetries", "fabric"), ())
    return node.model_copy(update=nothing | {"unknown": {}, "odd": node.odd[:ODD_TOLD]})


def alike_lines(told: FleetTopology) -> Iterator[str]:
    """`12 nodes alike: 8x NVIDIA H100 ...: n0001-n0012`."""
    for group in told.alike:
        like = " alike" if group.nodes > 1 else ""
        yield f"{counted(group.nodes)}{like}: {group.shape}: {group.names}"
    if told.alike_omitted:
        yield f"{counted(told.alike_omitted, 'more kind')} of wiring"
    yield from map(domain_line, told.domains)
    if told.domains_omitted:
        yield f"{counted(told.domains_omitted, 'more NVLink domain')}"


def odd_lines(nodes: Sequence[FleetNodeTopology], most: int = ODD_NODES) -> Iterator[str]:
    """What is odd, node by node."""
    odd = [node for node in nodes if node.odd]
    for node in odd[:most]:
        yield from (f"! {node.node}: {clipped(text, LINE_CHARS)}" for text in node.odd[:ODD_TOLD])
        if len(node.odd) > ODD_TOLD:
            yield f"! {node.node}: {len(node.odd) - ODD_TOLD} more"
    if len(odd) > most:
        yield f"! {counted(len(odd) - most, 'more odd node')}"


def _lines(
    told: FleetTopology,
    failures: Sequence[NodeFailure],
    arguments: GatewayArguments,
    *,
    first: bool,
) -> Iterator[str]:
    coverage = told.coverage
    yield (
        f"{coverage.nodes_answered} of {counted(coverage.nodes_asked)} answered: "
        f"{counted(told.nodes_odd, 'odd node')}, "
        f"{counted(len(told.alike) + told.alike_omitted, 'kind')} of wiring"
    )
    if told.simulated:
        yield "SIMULATED: no real hardware stands behind some or all of this."
    if coverage.said_of_discovery:
        yield coverage.said_of_discovery
    if first:
        yield from odd_lines(told.nodes)
        yield from alike_lines(told)
        yield from failure_lines(told.failures_by_reason, failures)
        if told.passed_over:
            yield ways_line(told, see="check_connectivity")
    if told.next_cursor is not None:
        omitted = counted(told.nodes_omitted, "more node")
        yield f'{omitted} to tell of: call again with cursor "{told.next_cursor}".'
    if _singly(arguments):
        for node in told.nodes:
            yield from node_lines(node, via=node.via)
    elif not first:
        yield from odd_lines(told.nodes)
